"""RWKV-4's recurrence, one token after the other: what every other implementation is measured against.

Exponents are added up in float64. In float32 a maximum of 60 is rounded by up to 2e-6 at each token's decay,
always the same way: over 1000 tokens that put the gradient of log_w off by 1e-3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.state import NO_MAXIMUM

__all__ = ["wkv4_reference"]


def wkv4_reference(
    log_w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv4`, in one dtype."""
    log_w, u, k = (x.double() for x in (log_w, u, k))
    a, b, p = state.unbind(1)
    p = p.double()
    outputs = []
    for t in range(v.shape[1]):
        if starts is not None:
            start = starts[:, t, None]
            a, b, p = torch.where(start, 0, a), torch.where(start, 0, b), torch.where(start, NO_MAXIMUM, p)
        key, value = k[:, t], v[:, t]

        q = torch.maximum(p, u + key)
        past, present = (p - q).to(v.dtype).exp(), (u + key - q).to(v.dtype).exp()
        outputs.append((past * a + present * value) / (past * b + present))

        q = torch.maximum(p + log_w, key)
        past, present = (p + log_w - q).to(v.dtype).exp(), (key - q).to(v.dtype).exp()
        a, b, p = past * a + present * value, past * b + present, q
    return torch.stack(outputs, dim=1), torch.stack([a, b, p.to(v.dtype)], dim=1)
