"""RWKV-7's recurrence, one token after the other: what every other implementation is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["wkv7_reference"]


def wkv7_reference(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv7`, in one dtype, for any decay."""
    w = log_w.exp()
    outputs = []
    for t in range(v.shape[1]):
        if starts is not None:
            state = torch.where(starts[:, t, None, None, None], 0, state)
        # Columns [B, H, K, 1] times rows [B, H, 1, V]: outer products.
        found = (a[:, t, :, None] @ state).squeeze(2)
        state = (
            w[:, t, :, :, None] * state
            + b[:, t, :, :, None] * found[:, :, None]
            + k[:, t, :, :, None] * v[:, t, :, None]
        )
        outputs.append((r[:, t, :, None] @ state).squeeze(2))
    return torch.stack(outputs, dim=1), state
