"""RWKV-5's recurrence, one token after the other: RWKV-6's, with the same decay for every token."""

from __future__ import annotations

from torch import Tensor

from rookery.ops.wkv6.reference import wkv6_reference

__all__ = ["wkv5_reference"]


def wkv5_reference(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv5`, in one dtype."""
    return wkv6_reference(r, log_w.expand_as(k), k, v, u, state, starts)
