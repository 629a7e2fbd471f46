"""Recurrences run in the precision of their inputs, whatever autocast is in force around them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["autocasts", "without_autocast"]


def autocasts(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    # torch knows no autocast for meta, and in torch 2.11 asking whether it knows one breaks graphs.
    return device != "meta" and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Switch autocast off for a device type: it would round products inside the recurrence to bfloat16."""
    return torch.autocast(device, enabled=False) if autocasts(device) else nullcontext()
