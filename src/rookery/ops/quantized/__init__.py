"""Products with matrices whose weights stay in blocks of small integers.

    y = x W^T,   W[i, j] = scale[i, j / 32] q[i, j]

The blocks are those of ``rookery.checkpoints.quantized``, with the integers of a matrix in one tensor and the
scales in another, so that a GPU reads both in whole lines:

    q8_0   numbers int8  [rows, columns]          W = scale number
    q4_0   numbers uint8 [rows, columns / 2]      byte j of a block: element j below, element j + 16 above;
                                                  W = scale (half byte - 8)
    scales float16 [rows, columns / 32]

For a few tokens, as in decoding, Triton kernels make weights of integers in registers: a step reads a half or
a quarter of the bytes that it would in 16 bits. For many tokens the matrix is made whole, one at a time, and
torch multiplies; so it is on a CPU, where the native engine is the fast one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rookery.checkpoints import BLOCK, Quantized
from rookery.ops.quantized.triton import MOST_TOKENS, quantized_linear_triton, serves

__all__ = ["dequantize", "quantized_linear", "split_blocks"]


def split_blocks(matrix: Quantized) -> tuple[Tensor, Tensor]:
    """The numbers and scales of a matrix in blocks, copied; rows are its outputs."""
    blocks = matrix.blocks.reshape(matrix.rows, matrix.columns // BLOCK, -1)
    scales = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0]
    numbers = np.ascontiguousarray(blocks[:, :, 2:]).reshape(matrix.rows, -1)
    return torch.from_numpy(numbers.view(np.int8) if matrix.kind == "q8_0" else numbers), torch.tensor(scales)


def dequantize(numbers: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights [..., columns] of rows of blocks, exact in float32 and rounded once in ``dtype``.

    Args:
        numbers: int8 [..., columns] or uint8 [..., columns / 2].
        scales: float16 [..., columns / 32].
        dtype: of the result.
    """
    blocks = numbers.unflatten(-1, (scales.shape[-1], -1))
    if numbers.dtype == torch.uint8:
        blocks = torch.cat((blocks & 15, blocks >> 4), -1).to(torch.int8) - 8
    return (blocks * scales.float()[..., None]).to(dtype).flatten(-2)


def quantized_linear(x: Tensor, numbers: Tensor, scales: Tensor) -> Tensor:
    """``x W^T``.

    Args:
        x: [..., columns], float32, bfloat16 or float16.
        numbers: int8 [rows, columns] or uint8 [rows, columns / 2].
        scales: float16 [rows, columns / 32].

    Returns:
        [..., rows] in the dtype of x; sums are float32. No gradients go back.
    """
    if serves(x) and x.numel() <= MOST_TOKENS * x.shape[-1]:
        return quantized_linear_triton(x, numbers, scales)
    return F.linear(x, dequantize(numbers, scales, x.dtype))
