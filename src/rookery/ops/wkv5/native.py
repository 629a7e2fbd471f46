"""RWKV-5's recurrence in C++ on a CPU: RWKV-6's, which reads the same decay for every token."""

from __future__ import annotations

from torch import Tensor

from rookery.ops.wkv6.native import wkv6_native

__all__ = ["wkv5_native"]


def wkv5_native(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv5`: inputs in float32 or bfloat16, the state in float32."""
    return wkv6_native(r, log_w.expand_as(k), k, v, u, state, starts)
