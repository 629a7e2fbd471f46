"""Steps of a model over memory that stays where it is, recorded."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rookery.errors import ConfigError
from rookery.generate.batch.few import (
    FEW_STREAMS,
    MOST_STREAMS,
    Weights,
    few_streams_step,
    serves,
    weights_of,
)
from rookery.generate.batch.recorded import record
from rookery.models import RWKV
from rookery.ops.in_place import IN_PLACE
from rookery.ops.triton import INSTALLED
from rookery.state import State

__all__ = ["StepRecorder"]


class StepRecorder:
    """Records steps over any number of streams.

    Args:
        model: its weights must stay as they are.
        implementation: of the recurrence, or ``"few streams"``: up to four streams of RWKV-7 by the kernels
            of ``rookery.generate.batch.few``, and more of them as by default. By default those kernels where
            they run, else the recurrence in place where Triton runs.
        pool: see ``record``.

    Raises:
        ConfigError: few streams are forced, and the kernels do not read this model.
    """

    def __init__(self, model: RWKV, *, implementation: str | None = None, pool: Any = None):
        self._model, self._forced, self._pool = model, implementation, pool
        self._device = model.ln_out.weight.device
        served = implementation in (None, FEW_STREAMS) and serves(model)
        if implementation == FEW_STREAMS and not served:
            raise ConfigError(
                "'few streams' is for RWKV-7 of dense matrices, all in one dtype of 16 or 32 bits"
            )
        self._few = served and (implementation == FEW_STREAMS or _few_run_on(self._device))

    def implementation(self, streams: int) -> str | None:
        """What a step of so many streams is computed by; None stands for the recurrence's default."""
        if self._few and streams <= MOST_STREAMS:
            return FEW_STREAMS
        if self._forced in (None, FEW_STREAMS):
            return IN_PLACE if self._device.type == "cuda" and INSTALLED else None
        return self._forced

    def record(self, tokens: Tensor, state: State[Tensor], logits: Tensor) -> Callable[[], None]:
        """What reads a token of each stream. It runs at once already: nothing of worth may be in its memory.

        Args:
            tokens: [B] int64, read.
            state: of B streams, read and written.
            logits: [B, N], written.
        """
        implementation = self.implementation(len(tokens))
        with torch.inference_mode():
            if implementation == FEW_STREAMS:
                run = few_streams_step(self._weights, tokens, state, logits)
            else:
                layers = self._model.split_state(state)

                def run() -> None:
                    made = self._model.step_in_place(tokens, layers, implementation=implementation)
                    logits.copy_(made)

            return record(run, warm_up=run, device=self._device, pool=self._pool)

    @cached_property
    def _weights(self) -> Weights:
        """Shared by the steps of all sizes, since a part of them is a copy."""
        return weights_of(self._model)


def _few_run_on(device: torch.device) -> bool:
    """NVIDIA's GPUs from Ampere on: older ones have too little shared memory."""
    if device.type != "cuda" or not INSTALLED or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
