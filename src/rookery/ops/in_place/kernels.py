"""Kernels that read a state, use it for one token, and write the new one in its place.

A program of RWKV-5 to 7 has all key channels and BV value channels of one head; nothing passes between value
channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rookery.ops.tiles import load_row, load_state, store_row, store_state

__all__ = ["step4", "step6", "step7"]


@triton.jit
def step4(log_w, u, k, v, state, y, A, CHANNELS: tl.constexpr):
    """Numerator, denominator and their scale; see ``rookery.ops.wkv4``."""
    stream = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    decay = load_row(log_w, 0, 0, A, channel)
    bonus = load_row(u, 0, 0, A, channel)
    key = load_row(k, stream, A, A, channel)
    value = load_row(v, stream, A, A, channel)
    above = load_row(state, 3 * stream, A, A, channel)
    below = load_row(state, 3 * stream + 1, A, A, channel)
    largest = load_row(state, 3 * stream + 2, A, A, channel)

    scale = tl.maximum(largest, bonus + key)
    past = tl.exp(largest - scale)
    present = tl.exp(bonus + key - scale)
    store_row(y, (past * above + present * value) / (past * below + present), stream, A, A, channel)

    scale = tl.maximum(largest + decay, key)
    past = tl.exp(largest + decay - scale)
    present = tl.exp(key - scale)
    store_row(state, past * above + present * value, 3 * stream, A, A, channel)
    store_row(state, past * below + present, 3 * stream + 1, A, A, channel)
    store_row(state, scale, 3 * stream + 2, A, A, channel)


@triton.jit
def step6(
    r, log_w, k, v, u, state, y, H, K, V,
    BK: tl.constexpr, BV: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """SHARED: the decay is one for all streams, [H, K], as in RWKV-5."""
    head = tl.program_id(0)
    channel = tl.arange(0, BK)
    value = tl.program_id(1) * BV + tl.arange(0, BV)
    x_r = load_row(r, head, K, K, channel)[:, None]
    x_k = load_row(k, head, K, K, channel)[:, None]
    x_v = load_row(v, head, V, V, value)[None, :]
    bonus = load_row(u, head % H, K, K, channel)[:, None]
    if SHARED:
        w = tl.exp(load_row(log_w, head % H, K, K, channel))[:, None]
    else:
        w = tl.exp(load_row(log_w, head, K, K, channel))[:, None]
    own = state + head.to(tl.int64) * K * V
    S = load_state(own, channel, value, K, V)
    learned = x_k * x_v
    store_row(y, tl.sum(x_r * (S + bonus * learned), axis=0), head, V, V, value)
    store_state(own, w * S + learned, channel, value, K, V)


@triton.jit
def step7(r, log_w, k, v, a, b, state, y, K, V, BK: tl.constexpr, BV: tl.constexpr):
    """What the state holds along a is removed, before k^T v is added; see ``rookery.ops.wkv7``."""
    head = tl.program_id(0)
    channel = tl.arange(0, BK)
    value = tl.program_id(1) * BV + tl.arange(0, BV)
    x_r = load_row(r, head, K, K, channel)[:, None]
    w = tl.exp(load_row(log_w, head, K, K, channel))[:, None]
    x_k = load_row(k, head, K, K, channel)[:, None]
    x_v = load_row(v, head, V, V, value)[None, :]
    x_a = load_row(a, head, K, K, channel)[:, None]
    x_b = load_row(b, head, K, K, channel)[:, None]
    own = state + head.to(tl.int64) * K * V
    S = load_state(own, channel, value, K, V)
    removed = tl.sum(x_a * S, axis=0)[None, :]
    S = w * S + x_b * removed + x_k * x_v
    store_row(y, tl.sum(x_r * S, axis=0), head, V, V, value)
    store_state(own, S, channel, value, K, V)
