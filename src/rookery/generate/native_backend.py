"""Running a model with the native engine: CPUs, without torch."""

from __future__ import annotations

import numpy as np

from rookery import native
from rookery.checkpoints import Checkpoint
from rookery.config import ModelConfig
from rookery.native import NativeModel
from rookery.state import State, initial_state

__all__ = ["NativeBackend", "load"]


def load(
    checkpoint: Checkpoint,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
) -> NativeBackend:
    """Pack the weights of a checkpoint; see ``rookery.native.load``.

    Args:
        checkpoint: the weights.
        device: the CPU, whatever is asked for: other devices have other backends.
        dtype: of the matrices; by default what the file has.
        threads: of this model; by default the physical cores.

    Raises:
        ConfigError: the engine has no such type, or cannot have so many threads.
        CheckpointError: the tensors are not one model.
    """
    return NativeBackend(native.load(checkpoint, dtype=dtype, threads=threads))


class NativeBackend:
    """A ``rookery.generate.Backend``. States are made of numpy arrays, float32.

    Args:
        model: what runs.
    """

    def __init__(self, model: NativeModel):
        self.model = model

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        return self.model.config

    def initial_state(self, batch: int = 1) -> State[np.ndarray]:
        """The state of ``batch`` streams before their first token."""
        return initial_state(self.config, batch)

    def forward(
        self, tokens: np.ndarray, state: State[np.ndarray], *, last_only: bool = False
    ) -> tuple[np.ndarray, State[np.ndarray]]:
        """Read tokens [B, T]: logits [B, T, N], or [B, 1, N] where ``last_only``; and the new state."""
        return self.model.forward(tokens, state, last_only=last_only)

    def to_numpy(self, state: State[np.ndarray]) -> State[np.ndarray]:
        """A copy of a state."""
        return State(*(np.array(part, np.float32) for part in state))

    def from_numpy(self, state: State[np.ndarray]) -> State[np.ndarray]:
        """The state itself where it is float32: nothing here writes into one."""
        return State(*(np.ascontiguousarray(part, np.float32) for part in state))
