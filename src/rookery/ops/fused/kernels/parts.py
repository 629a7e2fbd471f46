"""Reading and writing tiles, and sums over what programs have left of the gradients of parameters."""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "add_up",
    "follows",
    "head_tile",
    "is_followed",
    "normalise",
    "numbers",
    "put",
    "put_sum",
    "stream_tile",
    "take",
]


@triton.jit
def take(pointer, place, inside):
    """A tile in float32, 0 outside."""
    return tl.load(pointer + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def put(pointer, x, place, inside):
    """Write a tile, rounded to what the pointer points at."""
    tl.store(pointer + place, x.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def numbers(pointer, channel, width):
    """Of a parameter, [1, channels] in float32."""
    return tl.load(pointer + channel, mask=channel < width, other=0.0).to(tl.float32)[None, :]


@triton.jit
def put_sum(pointer, x, channel, width):
    """The sum of a tile over its tokens."""
    tl.store(pointer + channel, tl.sum(x, axis=0), mask=channel < width)


@triton.jit
def head_tile(rows, H, K: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr):
    """The program's tile of [rows, H K]: some rows of one head; grid (cdiv(rows, BR) H,).

    Returns:
        Where it begins in memory and among channels, its block of rows, then what `take` and `put` need: the
        place of each number after the beginning, and which are inside; and the channels of a head.
    """
    head, block = tl.program_id(0) % H, tl.program_id(0) // H
    first = block.to(tl.int64) * BR
    row, channel = tl.arange(0, BR), tl.arange(0, BK)
    place = row[:, None] * (H * K) + channel[None, :]
    inside = (first + row < rows)[:, None] & (channel < K)[None, :]
    return first * (H * K) + head * K, head * K, block.to(tl.int64), place, inside, channel


@triton.jit
def stream_tile(T, D, blocks, BT: tl.constexpr, BD: tl.constexpr):
    """The program's stream, the first of its tokens in that stream, and its channels."""
    columns = tl.cdiv(D, BD)
    block = tl.program_id(0) // columns
    channel = tl.program_id(0) % columns * BD + tl.arange(0, BD)
    return (block // blocks).to(tl.int64), block % blocks * BT, channel


@triton.jit
def follows(starts, first, begin, token, T, STARTS: tl.constexpr):
    """Which tokens of a tile have one before them in their document: in the call, and in the call before.

    Args:
        starts: [B, T], the first token of each document, where STARTS.
        first: the tile's first token, of all streams.
        begin: that token in its stream.
        token: the tokens of the tile, from 0.
    """
    within, across = begin + token > 0, begin + token == 0
    if STARTS:
        continues = tl.load(starts + first + token, mask=begin + token < T, other=1) == 0
        within &= continues
        across &= continues
    return within, across


@triton.jit
def is_followed(starts, first, begin, token, T, STARTS: tl.constexpr):
    """Which tokens of a tile have one after them in their document; see `follows`."""
    found = begin + token + 1 < T
    if STARTS:
        found &= tl.load(starts + first + token + 1, mask=found, other=1) == 0
    return found


@triton.jit
def normalise(x, inside, epsilon, width):
    """x of mean 0 and variance 1 in each row, and what it was divided by, inverted."""
    centred = tl.where(inside, x - (tl.sum(x, axis=1) / width)[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / width + epsilon)
    return centred * inverse[:, None], inverse


@triton.jit
def add_up(
    partials,
    totals,
    blocks,
    width,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Totals are sums over blocks of partials [blocks, COUNT, width]; grid (cdiv(width, WIDTH), COUNT)."""
    channel, which = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH), tl.program_id(1)
    row = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, blocks, ROWS):
        block = first + row
        place = (block.to(tl.int64) * COUNT + which)[:, None] * width + channel[None, :]
        total += take(partials, place, (block < blocks)[:, None] & (channel < width)[None, :])
    found = tl.sum(total, axis=0)
    for n in tl.static_range(COUNT):
        if which == n:
            put(totals[n], found, channel, channel < width)
