"""RWKV-5's recurrence by Triton kernels: RWKV-6's, which read the same decay for every token."""

from __future__ import annotations

from torch import Tensor

from rookery.ops.wkv6.triton import wkv6_triton

__all__ = ["wkv5_triton"]


def wkv5_triton(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv5`: inputs in float32, bfloat16 or float16, the state in float32."""
    return wkv6_triton(r, log_w, k, v, u, state, starts)
