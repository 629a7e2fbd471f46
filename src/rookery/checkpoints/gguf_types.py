"""The number types of GGML: how blocks of them lie in bytes, and the weights that they stand for.

A block is some consecutive weights of a row that share scales. All of this follows ``ggml-common.h`` and the
dequantization of llama.cpp; d and m are float16, q are small integers, and a block's weights are

    Q4_0  d (q - 8)     Q4_1  d q + m     Q5_0  d (q - 16)     Q5_1  d q + m     Q8_0  d q
    Q4_K, Q5_K  d s q - m t   in 8 parts of 32, each with two 6-bit integers s and t
    Q6_K  d s (q - 32)        in 16 parts of 16, each with an 8-bit integer s
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rookery.checkpoints.checkpoint import DTYPES
from rookery.checkpoints.quantized import Quantized

__all__ = ["CODES", "FLOATS", "NAMES", "TYPES", "BlockType", "dequantize_rows"]

# Blocks [n, bytes] uint8 -> weights [n, block] float32.
Decoder = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class BlockType:
    """One number type that is read."""

    name: str
    """GGML's name."""

    block: int
    """Weights of a block."""

    size: int
    """Bytes of a block."""

    decode: Decoder | None = None
    """From blocks to float32; None for plain numbers."""


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at byte ``at`` of each block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """[n, b] bytes to [n, 2 b]: the lower halves of all bytes, then the upper ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(blocks: np.ndarray, at: int) -> np.ndarray:
    """The 32 bits at byte ``at`` of each block, the lowest first, as 0 or 16."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4


def _native(kind: str) -> Decoder:
    def decode(blocks: np.ndarray) -> np.ndarray:
        return Quantized(kind, (len(blocks), 32), np.ascontiguousarray(blocks)).dequantize()

    return decode


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    q = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return _half(blocks, 0) * (q.astype(np.float32) - 16)


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    q = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return _half(blocks, 0) * q + _half(blocks, 2)


def _scales_and_minima(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight 6-bit scales and eight 6-bit minima [n, 8] from 12 bytes.

    Bytes 0 to 3 and 4 to 7 have the first four of each in their lower six bits; bytes 8 to 11 have the lower
    four bits of the others, whose upper two lie in the upper bits of bytes 0 to 7.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _halves_of_32(packed: np.ndarray) -> np.ndarray:
    """128 bytes to 8 parts of 32: of each 32 bytes the lower halves are one part, the upper the next."""
    parts = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([parts & 15, parts >> 4], axis=2).reshape(-1, 8, 32)


def _k_blocks(blocks: np.ndarray, q: np.ndarray) -> np.ndarray:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    scales *= _half(blocks, 0)
    minima *= _half(blocks, 2)
    return (scales[:, :, None] * q - minima[:, :, None]).reshape(-1, 256)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    return _k_blocks(blocks, _halves_of_32(blocks[:, 16:]))


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    # Bit j of the 32 bytes is the fifth bit of part j.
    fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _k_blocks(blocks, _halves_of_32(blocks[:, 48:]) | fifth << 4)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    # In each half of the block, 64 bytes have the lower four bits of 128 weights, and 32 bytes the upper two.
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    q = (low | high << 4).astype(np.float32).reshape(-1, 16, 16) - 32
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32) * _half(blocks, 208)
    return (scales[:, :, None] * q).reshape(-1, 256)


# By the code in the file.
TYPES: dict[int, BlockType] = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18, _native("q4_0")),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    6: BlockType("Q5_0", 32, 22, _q5_0),
    7: BlockType("Q5_1", 32, 24, _q5_1),
    8: BlockType("Q8_0", 32, 34, _native("q8_0")),
    12: BlockType("Q4_K", 256, 144, _q4_k),
    13: BlockType("Q5_K", 256, 176, _q5_k),
    14: BlockType("Q6_K", 256, 210, _q6_k),
    30: BlockType("BF16", 1, 2),
}
"""What is read."""

# Names of other types, for messages.
NAMES: dict[int, str] = {code: kind.name for code, kind in TYPES.items()} | {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip

CODES: dict[str, int] = {name: code for code, name in NAMES.items()}

# The plain ones.
FLOATS: dict[str, np.dtype] = {
    "F32": DTYPES["float32"],
    "F16": DTYPES["float16"],
    "BF16": DTYPES["bfloat16"],
}


def dequantize_rows(kind: BlockType, rows: np.ndarray) -> np.ndarray:
    """Rows of blocks [rows, bytes] uint8 as float32 [rows, columns]."""
    assert kind.decode is not None
    blocks = np.ascontiguousarray(rows).reshape(-1, kind.size)
    # A broken file may have scales that are not finite.
    with np.errstate(invalid="ignore", over="ignore"):
        return kind.decode(blocks).reshape(len(rows), -1)
