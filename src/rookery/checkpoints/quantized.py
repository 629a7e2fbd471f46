"""A matrix as blocks of 32 small integers that share a 16-bit scale, in the byte layouts of GGML.

    q8_0   34 bytes: float16 scale d, 32 signed bytes q             weight = d q
    q4_0   18 bytes: float16 scale d, 16 bytes of two 4-bit u       weight = d (u - 8)

(u: elements 0 to 15 lie in the lower halves of the bytes, 16 to 31 in the upper ones.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rookery.errors import CheckpointError

__all__ = ["BLOCK", "BLOCK_BYTES", "Quantized", "Weight", "dense", "dtype_name", "quantize_q8_0"]

BLOCK = 32
"""Inputs of one output that share a scale."""

BLOCK_BYTES: dict[str, int] = {"q8_0": 34, "q4_0": 18}
"""Kind -> bytes of a block."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """A matrix of a checkpoint in blocks. Blocks run along the inputs of each output, as engines multiply.

    Most official matrices are [outputs, inputs]. Some low-rank ones are stored the other way round
    (RWKV-7's ``att.w1``, RWKV-6's ``att.time_decay_w2``, ...): their blocks are of the transpose, and
    ``transposed`` says so. ``shape`` and what ``dequantize`` gives are the official ones always.

    Raises:
        CheckpointError: the kind is unknown, or the blocks are not those of such a matrix.
    """

    kind: str
    """``"q8_0"`` or ``"q4_0"``."""

    shape: tuple[int, int]
    """Of the official matrix."""

    blocks: np.ndarray
    """uint8 [rows, columns / 32 * bytes of a block]; rows and columns are ``shape``, or reversed."""

    transposed: bool = False
    """Whether the blocks are of the transpose of the official matrix."""

    def __post_init__(self) -> None:
        if self.kind not in BLOCK_BYTES:
            raise CheckpointError(
                None, f"blocks of kind {self.kind!r} are unknown; known are {', '.join(BLOCK_BYTES)}"
            )
        if len(self.shape) != 2 or min(self.shape) < 1 or self.columns % BLOCK:
            raise CheckpointError(
                None, f"a matrix of shape {self.shape} has no blocks of {BLOCK} inputs (axis {self.axis})"
            )
        expected = (self.rows, self.columns // BLOCK * BLOCK_BYTES[self.kind])
        if self.blocks.dtype != np.uint8 or self.blocks.shape != expected:
            raise CheckpointError(
                None,
                f"blocks of {self.kind} of a {self.rows} x {self.columns} matrix are uint8 {expected}, "
                f"not {self.blocks.dtype} {self.blocks.shape}",
            )

    @property
    def axis(self) -> int:
        """The axis of ``shape`` that is divided into blocks: the inputs."""
        return 0 if self.transposed else 1

    @property
    def rows(self) -> int:
        """Outputs."""
        return self.shape[1 - self.axis]

    @property
    def columns(self) -> int:
        """Inputs, a multiple of 32."""
        return self.shape[self.axis]

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    @property
    def size(self) -> int:
        """How many weights there are."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks."""
        return self.blocks.nbytes

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, which ``dequantize`` gives."""
        return np.dtype(np.float32)

    def dequantize(self) -> np.ndarray:
        """The weights [shape] as float32, exactly: a product of 11 and 8 bits fits."""
        parts = self.blocks.reshape(self.rows, self.columns // BLOCK, BLOCK_BYTES[self.kind])
        scales = np.ascontiguousarray(parts[:, :, :2]).view(np.float16).astype(np.float32)
        weights = np.empty((self.rows, self.columns // BLOCK, BLOCK), np.float32)
        # A broken file may have an infinite scale, of which a zero makes NaN.
        with np.errstate(invalid="ignore"):
            if self.kind == "q8_0":
                np.multiply(parts[:, :, 2:].view(np.int8), scales, out=weights)
            else:
                half = BLOCK // 2
                weights[:, :, :half] = parts[:, :, 2:] & 15
                weights[:, :, half:] = parts[:, :, 2:] >> 4
                weights -= 8
                weights *= scales
        matrix = weights.reshape(self.rows, self.columns)
        return np.ascontiguousarray(matrix.T) if self.transposed else matrix


def quantize_q8_0(weights: np.ndarray) -> np.ndarray:
    """Blocks of q8_0, uint8 [rows, columns / 32 * 34], of float32 weights [rows, columns].

    For what is read in formats that no engine has; ``rookery.native.quantize`` is faster by far.
    """
    parts = weights.reshape(len(weights), -1, BLOCK)
    blocks = np.empty((*parts.shape[:2], BLOCK_BYTES["q8_0"]), np.uint8)
    # A broken file's weights may be beyond float16, or none at all.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        largest = np.abs(parts).max(axis=2, keepdims=True)
        scales = (largest / 127).astype(np.float16)
        exact = scales.astype(np.float32)
        # Below float16's normal numbers a scale may be rounded down so far that the largest weight is cut.
        scales = np.where(exact * 127.49 < largest, np.nextafter(scales, np.float16(np.inf)), scales)
        inverse = np.where(scales > 0, 1 / scales.astype(np.float32), np.float32(0))
        numbers = np.clip(np.rint(parts * inverse), -127, 127).astype(np.int8)
    blocks[:, :, :2] = scales.view(np.uint8)
    blocks[:, :, 2:] = numbers.view(np.uint8)
    return blocks.reshape(len(weights), -1)


Weight = np.ndarray | Quantized
"""What a checkpoint has under a name."""


def dense(weight: Weight) -> np.ndarray:
    """The weight as an array: itself, or what its blocks stand for."""
    return weight.dequantize() if isinstance(weight, Quantized) else weight


def dtype_name(weight: Weight) -> str:
    """What the numbers are stored as: "float32", "bfloat16", "float16", "q8_0", "q4_0"."""
    return weight.kind if isinstance(weight, Quantized) else str(weight.dtype)
