"""Token shift: every layer mixes its input with the input one position before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["interpolate", "previous"]


def previous(x: Tensor, last: Tensor | None, starts: Tensor | None = None) -> Tensor:
    """The input one position before: ``x[t - 1]`` at position t.

    Args:
        x: [B, T, D].
        last: [B, D], the input before ``x[:, 0]``; None at the start of a text.
        starts: [B, T] bool; the first token of a document has zeros before it.

    Returns:
        [B, T, D], of x's dtype.
    """
    if last is None:
        shifted = F.pad(x, (0, 0, 1, -1))
    else:
        shifted = torch.cat((last.to(x.dtype)[:, None], x[:, :-1]), dim=1)
    if starts is not None:
        shifted = shifted.masked_fill(starts[..., None], 0)
    return shifted


def interpolate(origin: Tensor, target: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """``origin + (target - origin) * weight`` for each weight: 0 gives the origin, 1 the target.

    RWKV-4 and 5 go from the previous input to the present one, RWKV-6 and 7 the other way.

    Args:
        origin, target: [B, T, D].
        weights: each [1, 1, D] or [B, T, D].

    Returns:
        One [B, T, D] for each weight.
    """
    difference = target - origin
    return [torch.addcmul(origin, difference, weight) for weight in weights]
