"""RWKV-4's recurrence, one token after the other: what every other implementation is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.state import NO_MAXIMUM

__all__ = ["fresh", "wkv4_reference"]


def fresh(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(numerator, denominator, maximum) before any token, [3], the same for every channel."""
    return torch.tensor([0.0, 0.0, NO_MAXIMUM], dtype=dtype, device=device)


def wkv4_reference(
    log_w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv4`, in one dtype."""
    new = fresh(state.dtype, state.device)[:, None]
    outputs = []
    for t in range(v.shape[1]):
        if starts is not None:
            state = torch.where(starts[:, t, None, None], new, state)
        a, b, p = state.unbind(1)
        key, value = k[:, t], v[:, t]

        q = torch.maximum(p, u + key)
        past, present = (p - q).exp(), (u + key - q).exp()
        outputs.append((past * a + present * value) / (past * b + present))

        q = torch.maximum(p + log_w, key)
        past, present = (p + log_w - q).exp(), (key - q).exp()
        state = torch.stack([past * a + present * value, past * b + present, q], dim=1)
    return torch.stack(outputs, dim=1), state
