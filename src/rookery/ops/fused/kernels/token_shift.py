"""Token shift: a program mixes a tile, some tokens of one stream and some channels, for all weights at once.

A tile and the tile one token before lie in the same lines of memory but for one, so that the second read
comes from the cache. So does that of the tile one token after, in the backward pass.

Names: x, outputs, dx [B, T, D]; last, dlast [B, D]; weights [D], where VARYING [B, T, D].
"""

# Triton takes no choice between tiles of two shapes as an expression, and no `and` of a constant and a value.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from rookery.ops.fused.kernels.parts import follows, is_followed, numbers, put, put_sum, stream_tile, take

__all__ = ["backward", "forward"]


@triton.jit
def _inputs(
    x,
    last,
    starts,
    stream,
    begin,
    place,
    inside,
    token,
    channel,
    T,
    D,
    LAST: tl.constexpr,
    STARTS: tl.constexpr,
):
    """The present inputs of a tile, and the previous ones."""
    first = stream * T + begin
    now = take(x + first * D, place, inside)
    within, across = follows(starts, first, begin, token, T, STARTS)
    before = take(x + first * D - D, place, inside & within[:, None])
    if LAST:
        before += take(last + stream * D, place * 0 + channel[None, :], inside & across[:, None])
    return now, before


@triton.jit
def _weight(weight, place, inside, channel, D, VARYING: tl.constexpr):
    if VARYING:
        found = take(weight, place, inside)
    else:
        found = numbers(weight, channel, D)
    return found


@triton.jit
def forward(
    x,
    last,
    starts,
    weights,
    outputs,
    T,
    D,
    blocks,
    COUNT: tl.constexpr,
    LAST: tl.constexpr,
    STARTS: tl.constexpr,
    TO_PRESENT: tl.constexpr,
    VARYING: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Grid (B blocks cdiv(D, BD),); blocks: of BT tokens, in a stream."""
    stream, begin, channel = stream_tile(T, D, blocks, BT, BD)
    token = tl.arange(0, BT)
    place = token[:, None] * D + channel[None, :]
    inside = (begin + token < T)[:, None] & (channel < D)[None, :]
    now, before = _inputs(x, last, starts, stream, begin, place, inside, token, channel, T, D, LAST, STARTS)
    origin = before if TO_PRESENT else now
    difference = now - before if TO_PRESENT else before - now
    tile = (stream * T + begin) * D
    moves = tile if VARYING else 0
    for n in tl.static_range(COUNT):
        weight = _weight(weights[n] + moves, place, inside, channel, D, VARYING)
        put(outputs[n] + tile, origin + difference * weight, place, inside)


@triton.jit
def backward(
    x,
    last,
    starts,
    weights,
    doutputs,
    dx,
    dlast,
    dweights,
    partials,
    T,
    D,
    blocks,
    COUNT: tl.constexpr,
    LAST: tl.constexpr,
    STARTS: tl.constexpr,
    TO_PRESENT: tl.constexpr,
    VARYING: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Gradients; those of weights that do not vary as sums over the tile, partials [B blocks, COUNT, D]."""
    stream, begin, channel = stream_tile(T, D, blocks, BT, BD)
    token = tl.arange(0, BT)
    place = token[:, None] * D + channel[None, :]
    inside = (begin + token < T)[:, None] & (channel < D)[None, :]
    now, before = _inputs(x, last, starts, stream, begin, place, inside, token, channel, T, D, LAST, STARTS)
    difference = now - before if TO_PRESENT else before - now
    first = stream * T + begin
    after = inside & is_followed(starts, first, begin, token, T, STARTS)[:, None]
    tile = first * D
    moves = tile if VARYING else 0
    sums = partials + (stream * blocks + begin // BT) * COUNT * D
    total = tl.zeros([BT, BD], tl.float32)
    for n in tl.static_range(COUNT):
        dy = take(doutputs[n] + tile, place, inside)
        later = take(doutputs[n] + tile + D, place, after)
        weight = _weight(weights[n] + moves, place, inside, channel, D, VARYING)
        weight_later = weight
        if VARYING:
            weight_later = take(weights[n] + tile + D, place, after)
        if TO_PRESENT:
            total += dy * weight + later * (1.0 - weight_later)
        else:
            total += dy * (1.0 - weight) + later * weight_later
        if VARYING:
            put(dweights[n] + tile, dy * difference, place, inside)
        else:
            put_sum(sums + n * D, dy * difference, channel, D)
    put(dx + tile, total, place, inside)
    if LAST:
        if begin == 0:
            wide = channel < D
            found = tl.zeros([BD], tl.float32)
            for n in tl.static_range(COUNT):
                toward = take(weights[n] + moves, channel, wide)
                toward = 1.0 - toward if TO_PRESENT else toward
                found += take(doutputs[n] + tile, channel, wide) * toward
            if STARTS:
                found *= 1.0 - tl.load(starts + first).to(tl.float32)
            put(dlast + stream * D, found, channel, wide)
