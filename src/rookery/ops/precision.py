"""Recurrences run in the precision of their inputs, whatever autocast is in force around them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["full_precision"]


def full_precision(device: str) -> AbstractContextManager[object]:
    """Switch autocast off for a device type: it would round products inside the recurrence to bfloat16."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
