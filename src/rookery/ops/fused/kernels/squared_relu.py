"""max(x, 0)^2 over n numbers in a run."""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from rookery.ops.fused.kernels.parts import put, take

__all__ = ["backward", "forward"]


@triton.jit
def forward(x, y, n, BLOCK: tl.constexpr):
    """Grid (cdiv(n, BLOCK),)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    found = take(x, at, at < n)
    # In this way NaN stays NaN.
    positive = tl.where(found < 0, 0.0, found)
    put(y, positive * positive, at, at < n)


@triton.jit
def backward(y, dy, dx, n, BLOCK: tl.constexpr):
    """dx = 2 sqrt(y) dy; grid (cdiv(n, BLOCK),)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    put(dx, 2.0 * tl.sqrt(take(y, at, at < n)) * take(dy, at, at < n), at, at < n)
