"""RWKV-6's recurrence, one token after the other: what every other implementation is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["wkv6_reference"]


def wkv6_reference(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv6`, in one dtype; log_w also as a [B, T, H, K] view of [H, K]."""
    w = log_w.exp()
    outputs = []
    for t in range(v.shape[1]):
        if starts is not None:
            state = torch.where(starts[:, t, None, None, None], 0, state)
        learned = k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append((r[:, t, :, None] @ (state + u[:, :, None] * learned)).squeeze(2))
        state = w[:, t, :, :, None] * state + learned
    return torch.stack(outputs, dim=1), state
