"""GLA's recurrence, one token after the other: what every other implementation is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gla_reference"]


def gla_reference(
    q: Tensor,
    log_alpha: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.gla`, in one dtype."""
    alpha = log_alpha.exp()
    outputs = []
    for t in range(v.shape[1]):
        if starts is not None:
            state = torch.where(starts[:, t, None, None, None], 0, state)
        state = alpha[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append((q[:, t, :, None] @ state).squeeze(2))
    return torch.stack(outputs, dim=1), state
