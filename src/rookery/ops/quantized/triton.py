"""Products of a few tokens with matrices in blocks, by Triton kernels (``kernels.py``)."""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.ops.triton import DEVICES, INSTALLED, READS, block, precision, triton_kernels

__all__ = ["MOST_TOKENS", "quantized_linear_triton", "serves"]

MOST_TOKENS = 64
"""Up to which the kernels serve. Beyond, making the matrix whole costs less than the product itself."""

# Blocks of a row that a program reads at once: 1 KB of it for one token, and 4 blocks for more tokens, whose
# inputs take registers too: with 8, 64 tokens spill.
_VECTOR_BLOCKS = {8: 32, 4: 64}
_TILE_BLOCKS = 4
# Rows of a program: enough programs for all of a GPU, also in matrices of 2048 rows.
_VECTOR_ROWS = 4
_MANY_ROWS = 4096


def serves(x: Tensor) -> bool:
    """Whether the kernels are to be used for such an input."""
    return x.device.type == "cuda" and x.dtype in READS and INSTALLED


@torch.library.custom_op("rookery::quantized_linear", mutates_args=(), device_types=DEVICES)
def quantized_linear_triton(x: Tensor, numbers: Tensor, scales: Tensor) -> Tensor:
    """As ``rookery.ops.quantized.quantized_linear``."""
    kernels = triton_kernels("rookery.ops.quantized.kernels")
    y = _empty(x, numbers, scales)
    x, numbers, scales = x.contiguous(), numbers.contiguous(), scales.contiguous()
    rows, blocks = scales.shape
    tokens = x.numel() // x.shape[-1]
    bits = 8 if numbers.dtype == torch.int8 else 4
    if tokens == 1:
        kernels.vector[(-(-rows // _VECTOR_ROWS),)](
            *(x, numbers, scales, y, rows, blocks),
            ROWS=_VECTOR_ROWS,
            BLOCKS=min(_VECTOR_BLOCKS[bits], 1 << (blocks - 1).bit_length()),
            BITS=bits,
            num_warps=4,
        )
    else:
        height, width = (32 if rows >= _MANY_ROWS else 16), min(block(tokens), 64)
        kernels.tile[(-(-rows // height), -(-tokens // width))](
            *(x, numbers, scales, y, tokens, rows, blocks),
            ROWS=height,
            TOKENS=width,
            BLOCKS=_TILE_BLOCKS,
            BITS=bits,
            PRECISION=precision(x),
            num_warps=4 if height == 32 or width > 16 else 2,
        )
    return y


@quantized_linear_triton.register_fake
def _empty(x: Tensor, numbers: Tensor, scales: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], numbers.shape[0]))
