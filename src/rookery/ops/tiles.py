"""Parts of the Triton kernels: reading and writing pieces of rows and states, and what lies inside a chunk.

Imported by the kernels alone, since it imports Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "below",
    "documents",
    "horizon",
    "load_row",
    "load_state",
    "load_tile",
    "product",
    "store_row",
    "store_state",
    "store_tile",
]


@triton.jit
def load_tile(pointer, start, T, stride, width, token, channel):
    """[C, channels] numbers of a chunk in float32, 0 outside of the row; `pointer` is at its first token."""
    at = start + token
    inside = (at[:, None] < T) & (channel[None, :] < width)
    return tl.load(pointer + at[:, None] * stride + channel[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_tile(pointer, x, start, T, stride, width, token, channel):
    """Write what of `x` [C, channels] is inside of the row."""
    at = start + token
    inside = (at[:, None] < T) & (channel[None, :] < width)
    tl.store(pointer + at[:, None] * stride + channel[None, :], x, mask=inside)


@triton.jit
def load_row(pointer, at, stride, width, channel):
    """The numbers of one token, in float32."""
    return tl.load(pointer + at * stride + channel, mask=channel < width, other=0.0).to(tl.float32)


@triton.jit
def store_row(pointer, x, at, stride, width, channel):
    """Write the numbers of one token."""
    tl.store(pointer + at * stride + channel, x, mask=channel < width)


@triton.jit
def load_state(pointer, channel, value, K, V):
    """[K, V] float32, 0 beyond K and V."""
    inside = (channel[:, None] < K) & (value[None, :] < V)
    return tl.load(pointer + channel[:, None] * V + value[None, :], mask=inside, other=0.0)


@triton.jit
def store_state(pointer, x, channel, value, K, V):
    """Write what of `x` is inside of K and V."""
    inside = (channel[:, None] < K) & (value[None, :] < V)
    tl.store(pointer + channel[:, None] * V + value[None, :], x, mask=inside)


@triton.jit
def documents(pointer, start, T, token, STARTS: tl.constexpr):
    """[C] int32: how many documents have started in the chunk up to each token."""
    if STARTS:
        at = start + token
        marks = tl.load(pointer + at, mask=at < T, other=0).to(tl.int32)
        begun = tl.cumsum(marks, axis=0)
    else:
        begun = token * 0
    return begun


@triton.jit
def horizon(begun):
    """[C, 1]: which tokens see the state before a chunk, which reach that after it; and its last document."""
    last = tl.max(begun, axis=0)
    return (begun == 0)[:, None], (begun == last)[:, None], last


@triton.jit
def below(x, begun, token, OWN: tl.constexpr):
    """[C, C] scores, 0 where the column's token is not before the row's, or of another document.

    OWN: a token also sees itself.
    """
    before = token[:, None] >= token[None, :] if OWN else token[:, None] > token[None, :]
    return tl.where(before & (begun[:, None] == begun[None, :]), x, 0.0)


@triton.jit
def product(x, y, PRECISION: tl.constexpr):
    """x y, added up in float32; see `rookery.ops.triton.precision`."""
    if PRECISION == "bf16":
        return tl.dot(x.to(tl.bfloat16), y.to(tl.bfloat16))
    else:
        return tl.dot(x, y, input_precision=PRECISION)
