"""Kernels that multiply by weights in blocks, made of integers in registers.

A block of 32 weights is BYTES bytes of numbers (32, or 16 with two numbers in each) and a scale. Whatever is
beyond the matrix is read as a scale of 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rookery.ops.tiles import product

__all__ = ["tile", "vector"]


@triton.jit
def _scales(scales, row, block, R, blocks):
    inside = (row[:, None] < R) & (block[None, :] < blocks)
    return tl.load(scales + row[:, None] * blocks + block[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _numbers(numbers, row, block, byte, R, blocks, BYTES: tl.constexpr):
    """[ROWS, BLOCKS, BYTES] as they are stored."""
    inside = (row[:, None] < R) & (block[None, :] < blocks)
    at = (row[:, None] * blocks + block[None, :])[:, :, None] * BYTES + byte[None, None, :]
    return tl.load(numbers + at, mask=inside[:, :, None], other=0)


@triton.jit
def _low(q):
    return (q & 15).to(tl.float32) - 8.0


@triton.jit
def _high(q):
    return (q >> 4).to(tl.float32) - 8.0


@triton.jit
def _of_token(x, block, byte, blocks, FIRST: tl.constexpr):
    """[1, BLOCKS, BYTES]: the inputs that the numbers of a token are multiplied by."""
    at = block[:, None] * 32 + byte[None, :] + FIRST
    return tl.load(x + at, mask=(block < blocks)[:, None], other=0.0).to(tl.float32)[None, :, :]


@triton.jit
def vector(
    x, numbers, scales, y, R, blocks,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """One token: y [R] = W x. A program has ROWS rows; scales multiply the sums of blocks."""
    BYTES: tl.constexpr = BITS * 4
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    byte = tl.arange(0, BYTES)
    total = tl.zeros([ROWS, BLOCKS], tl.float32)
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        q = _numbers(numbers, row, block, byte, R, blocks, BYTES)
        first = _of_token(x, block, byte, blocks, 0)
        if BITS == 8:
            products = q.to(tl.float32) * first
        else:
            products = _low(q) * first + _high(q) * _of_token(x, block, byte, blocks, 16)
        total += tl.sum(products, axis=2) * _scales(scales, row, block, R, blocks)
    tl.store(y + row, tl.sum(total, axis=1), mask=row < R)


@triton.jit
def tile(
    x, numbers, scales, y, tokens, R, blocks,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, BLOCKS: tl.constexpr,
    BITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A few tokens: y [tokens, R] = x W^T, on tensor cores."""
    BYTES: tl.constexpr = BITS * 4
    INPUTS: tl.constexpr = BLOCKS * 32
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    byte = tl.arange(0, BYTES)
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        q = _numbers(numbers, row, block, byte, R, blocks, BYTES)
        scale = _scales(scales, row, block, R, blocks)[:, :, None]
        if BITS == 8:
            w = tl.reshape(q.to(tl.float32) * scale, [ROWS, INPUTS])
        else:
            # [ROWS, BLOCKS, BYTES, 2], whose last axis belongs before the bytes.
            halves = tl.join(_low(q) * scale, _high(q) * scale)
            w = tl.reshape(tl.permute(halves, (0, 1, 3, 2)), [ROWS, INPUTS])
        column = start * 32 + tl.arange(0, INPUTS)
        inside = (token[:, None] < tokens) & (column[None, :] < blocks * 32)
        part = tl.load(x + token[:, None] * (blocks * 32) + column[None, :], mask=inside, other=0.0)
        total += product(w, tl.trans(part.to(tl.float32)), PRECISION)
    inside = (row[:, None] < R) & (token[None, :] < tokens)
    tl.store(y + token[None, :] * R + row[:, None], total, mask=inside)
