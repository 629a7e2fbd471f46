"""The logarithm of RWKV-6's decay: a program computes some tokens of one head.

Names: inputs and log_w [rows, H K], rows the tokens of all streams; base [H K].
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from rookery.ops.fused.kernels.parts import head_tile, numbers, put, put_sum, take

__all__ = ["backward", "forward"]


@triton.jit
def forward(x, base, log_w, rows, H, K: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr):
    """-exp(base + x); grid (cdiv(rows, BR) H,)."""
    tile, own, _block, place, inside, channel = head_tile(rows, H, K, BR, BK)
    put(log_w + tile, -tl.exp(numbers(base + own, channel, K) + take(x + tile, place, inside)), place, inside)


@triton.jit
def backward(log_w, dlog_w, dx, partials, rows, H, K: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr):
    """The gradient of x, and sums over the tile for the base: partials [blocks, 1, H K]."""
    tile, own, block, place, inside, channel = head_tile(rows, H, K, BR, BK)
    found = take(log_w + tile, place, inside) * take(dlog_w + tile, place, inside)
    put(dx + tile, found, place, inside)
    put_sum(partials + block * H * K + own, found, channel, K)
