"""A step of the model over memory that stays where it is, recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rookery.generate.batch.recorded import record
from rookery.models import RWKV
from rookery.ops.in_place import IN_PLACE
from rookery.ops.triton import INSTALLED
from rookery.state import State

__all__ = ["record_step"]


def record_step(
    model: RWKV,
    tokens: Tensor,
    state: State[Tensor],
    logits: Tensor,
    *,
    implementation: str | None = None,
    pool: Any = None,
) -> Callable[[], None]:
    """What reads a token of each stream. It runs at once already, so nothing of worth may be in its memory.

    Args:
        model: its weights must stay where they are.
        tokens: [B] int64, read.
        state: of B streams, read and written.
        logits: [B, N], written.
        implementation: of the recurrence; by default in place where Triton runs.
        pool: see ``record``.
    """
    if implementation is None and tokens.device.type == "cuda" and INSTALLED:
        implementation = IN_PLACE
    layers = model.split_state(state)

    def run() -> None:
        logits.copy_(model.step_in_place(tokens, layers, implementation=implementation))

    with torch.inference_mode():
        return record(run, warm_up=run, device=tokens.device, pool=pool)
