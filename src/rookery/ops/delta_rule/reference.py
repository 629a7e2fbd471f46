"""The delta rule, one token after the other: what every other implementation is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["delta_rule_reference"]


def delta_rule_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.delta_rule`, in one dtype."""
    outputs = []
    for t in range(v.shape[1]):
        if starts is not None:
            state = torch.where(starts[:, t, None, None, None], 0, state)
        held = (k[:, t, :, None] @ state).squeeze(2)
        written = beta[:, t, :, None] * (v[:, t] - held)
        state = state + k[:, t, :, :, None] * written[:, :, None]
        outputs.append((q[:, t, :, None] @ state).squeeze(2))
    return torch.stack(outputs, dim=1), state
