"""A sum and its layer norm: a program computes some tokens, all channels at once.

Names: all inputs and results [rows, D], rows the tokens of all streams; weight, bias [D].
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from rookery.ops.fused.kernels.parts import normalise, numbers, put, put_sum, take

__all__ = ["backward", "forward"]


@triton.jit
def _tile(tile, rows, D, BR: tl.constexpr, BD: tl.constexpr):
    """Where a tile begins, the place of each of its numbers after that, and which are inside."""
    first = tl.cast(tile, tl.int64) * BR
    row, channel = tl.arange(0, BR), tl.arange(0, BD)
    inside = (first + row < rows)[:, None] & (channel < D)[None, :]
    return first * D, row[:, None] * D + channel[None, :], inside


@triton.jit
def forward(
    x,
    y,
    weight,
    bias,
    total,
    normal,
    rows,
    D,
    epsilon,
    ADDS: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """Grid (cdiv(rows, BR),)."""
    begin, place, inside = _tile(tl.program_id(0), rows, D, BR, BD)
    channel = tl.arange(0, BD)
    found = take(x + begin, place, inside)
    if ADDS:
        # As the backward pass will read it.
        rounded = (found + take(y + begin, place, inside)).to(total.dtype.element_ty)
        tl.store(total + begin + place, rounded, mask=inside)
        found = rounded.to(tl.float32)
    unscaled, _inverse = normalise(found, inside, epsilon, D)
    put(normal + begin, unscaled * numbers(weight, channel, D) + numbers(bias, channel, D), place, inside)


@triton.jit
def backward(
    total,
    weight,
    dtotal,
    dnormal,
    dx,
    narrow,
    partials,
    rows,
    D,
    epsilon,
    NARROW: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """The gradient of the sum, where NARROW once more in a narrower dtype; and partials [programs, 2, D],
    sums for weight and bias over the tokens of a program. Grid (programs,).
    """
    channel = tl.arange(0, BD)
    scale = numbers(weight, channel, D)
    on_weight, on_bias = tl.zeros([BR, BD], tl.float32), tl.zeros([BR, BD], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        begin, place, inside = _tile(tile, rows, D, BR, BD)
        unscaled, inverse = normalise(take(total + begin, place, inside), inside, epsilon, D)
        given = take(dnormal + begin, place, inside)
        on_weight += given * unscaled
        on_bias += given
        given *= scale
        mean = (tl.sum(given, axis=1) / D)[:, None]
        along = (tl.sum(given * unscaled, axis=1) / D)[:, None]
        found = (given - mean - unscaled * along) * inverse[:, None] + take(dtotal + begin, place, inside)
        put(dx + begin, found, place, inside)
        if NARROW:
            put(narrow + begin, found, place, inside)
    sums = partials + tl.program_id(0).to(tl.int64) * 2 * D
    put_sum(sums, on_weight, channel, D)
    put_sum(sums + D, on_bias, channel, D)
