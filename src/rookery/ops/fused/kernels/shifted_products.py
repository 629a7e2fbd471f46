"""Products of token-shifted inputs with matrices, without the shifted inputs (see `rookery.ops.fused`).

Names: matrices [D, ranks[n]], their weights [D]; folded [D, 2 R], R the sum of the ranks; products
[B, T, 2 R], sums [B, T, R], last [B, R].
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from rookery.ops.fused.kernels.parts import follows, is_followed, put, stream_tile, take

__all__ = ["add_previous", "fold", "fold_backward", "spread"]


@triton.jit
def _rows(D, BD: tl.constexpr, BR: tl.constexpr):
    """The program's rows of the matrices, which are inside, and the columns of any of them."""
    row = tl.program_id(0) * BD + tl.arange(0, BD)
    return row, row < D, tl.arange(0, BR)


@triton.jit
def fold(matrices, weights, ranks, folded, D, R, COUNT: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr):
    """(1 - weight) matrix beside each other, then weight matrix; grid (cdiv(D, BD),)."""
    row, inside, column = _rows(D, BD, BR)
    begin = 0
    for n in tl.static_range(COUNT):
        rank = ranks[n]
        within = inside[:, None] & (column < rank)[None, :]
        matrix = take(matrices[n], row[:, None] * rank + column[None, :], within)
        moved = matrix * take(weights[n], row, inside)[:, None]
        place = row[:, None] * (2 * R) + begin + column[None, :]
        put(folded, matrix - moved, place, within)
        put(folded + R, moved, place, within)
        begin += rank


@triton.jit
def fold_backward(
    matrices,
    weights,
    ranks,
    dfolded,
    dmatrices,
    dweights,
    D,
    R,
    COUNT: tl.constexpr,
    BD: tl.constexpr,
    BR: tl.constexpr,
):
    """Grid (cdiv(D, BD),)."""
    row, inside, column = _rows(D, BD, BR)
    begin = 0
    for n in tl.static_range(COUNT):
        rank = ranks[n]
        within = inside[:, None] & (column < rank)[None, :]
        own = row[:, None] * rank + column[None, :]
        place = row[:, None] * (2 * R) + begin + column[None, :]
        stays, moves = take(dfolded, place, within), take(dfolded + R, place, within)
        weight = take(weights[n], row, inside)[:, None]
        put(dmatrices[n], stays + (moves - stays) * weight, own, within)
        put(dweights[n], tl.sum((moves - stays) * take(matrices[n], own, within), axis=1), row, inside)
        begin += rank


@triton.jit
def add_previous(
    products,
    last,
    starts,
    sums,
    T,
    R,
    blocks,
    LAST: tl.constexpr,
    STARTS: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
):
    """The first half of a token's products and the second half of those of the token before, or of `last`.

    Grid (B blocks cdiv(R, BR),); blocks: of BT tokens, in a stream.
    """
    stream, begin, column = stream_tile(T, R, blocks, BT, BR)
    token = tl.arange(0, BT)
    inside = (begin + token < T)[:, None] & (column < R)[None, :]
    first = stream * T + begin
    within, across = follows(starts, first, begin, token, T, STARTS)
    place = token[:, None] * (2 * R) + column[None, :]
    found = take(products + first * 2 * R, place, inside)
    found += take(products + first * 2 * R - R, place, inside & within[:, None])
    if LAST:
        found += take(last + stream * R, token[:, None] * 0 + column[None, :], inside & across[:, None])
    put(sums + first * R, found, token[:, None] * R + column[None, :], inside)


@triton.jit
def spread(
    dsums,
    starts,
    dproducts,
    dlast,
    T,
    R,
    blocks,
    LAST: tl.constexpr,
    STARTS: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
):
    """The gradients of products and of last; grid (B blocks cdiv(R, BR),)."""
    stream, begin, column = stream_tile(T, R, blocks, BT, BR)
    token = tl.arange(0, BT)
    inside = (begin + token < T)[:, None] & (column < R)[None, :]
    first = stream * T + begin
    own = token[:, None] * R + column[None, :]
    place = token[:, None] * (2 * R) + column[None, :]
    put(dproducts + first * 2 * R, take(dsums + first * R, own, inside), place, inside)
    followed = is_followed(starts, first, begin, token, T, STARTS)
    later = take(dsums + first * R + R, own, inside & followed[:, None])
    put(dproducts + first * 2 * R + R, later, place, inside)
    if LAST:
        if begin == 0:
            wide = column < R
            found = take(dsums + first * R, column, wide)
            if STARTS:
                found *= 1.0 - tl.load(starts + first).to(tl.float32)
            put(dlast + stream * R, found, column, wide)
