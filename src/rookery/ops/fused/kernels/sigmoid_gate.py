"""sigmoid(g) x, element by element."""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from rookery.ops.fused.kernels.parts import put, take

__all__ = ["backward", "forward"]


@triton.jit
def forward(x, g, result, n, BLOCK: tl.constexpr):
    """Grid (cdiv(n, BLOCK),)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    put(result, tl.sigmoid(take(g, at, at < n)) * take(x, at, at < n), at, at < n)


@triton.jit
def backward(x, g, dresult, dx, dg, n, BLOCK: tl.constexpr):
    """Grid (cdiv(n, BLOCK),)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    share = tl.sigmoid(take(g, at, at < n))
    on_x = take(dresult, at, at < n) * share
    put(dx, on_x, at, at < n)
    put(dg, on_x * (1.0 - share) * take(x, at, at < n), at, at < n)
