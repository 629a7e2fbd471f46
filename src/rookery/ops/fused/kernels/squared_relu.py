"""max(x, 0)^2 over n numbers in a run."""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from rookery.ops.fused.kernels.parts import put, take

__all__ = ["backward", "forward"]


@triton.jit
def _positive(x):
    """max(x, 0), which keeps NaN."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def forward(x, y, n, BLOCK: tl.constexpr):
    """Grid (cdiv(n, BLOCK),)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    positive = _positive(take(x, at, at < n))
    put(y, positive * positive, at, at < n)


@triton.jit
def backward(x, dy, dx, n, BLOCK: tl.constexpr):
    """dx = 2 max(x, 0) dy; grid (cdiv(n, BLOCK),)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    put(dx, 2.0 * _positive(take(x, at, at < n)) * take(dy, at, at < n), at, at < n)
