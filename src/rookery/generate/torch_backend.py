"""Running a model with torch: CPU, CUDA and whatever else torch runs on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rookery.checkpoints import Checkpoint
from rookery.config import ModelConfig
from rookery.errors import ConfigError
from rookery.models import RWKV, from_checkpoint
from rookery.state import State

__all__ = ["PREFILL_CHUNK", "TorchBackend", "has_cuda", "load"]

PREFILL_CHUNK = 512
"""Tokens of each stream that go through the model at once, so that a long prompt needs no more memory."""


def load(
    checkpoint: Checkpoint,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
) -> TorchBackend:
    """Load the weights of a checkpoint.

    Args:
        checkpoint: the weights.
        device: a torch device; by default CUDA where it is available, else the CPU.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``; by default float32 on a CPU, and elsewhere the
            narrowest type that holds every weight of the checkpoint exactly.
        threads: of the CPU, for the whole process; by default torch's choice.

    Raises:
        ConfigError: torch cannot use the device, or has no such type.
        CheckpointError: the tensors are not one model.
    """
    if dtype is not None and not hasattr(torch, dtype):
        raise ConfigError(
            f"weights in {dtype} run in the native engine alone (on a CPU); take bfloat16 for torch"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    where = _device(device)
    if dtype is None and where.type == "cpu":
        dtype = "float32"
    kind = None if dtype is None else getattr(torch, dtype)
    model = from_checkpoint(checkpoint, device=where, dtype=kind)
    return TorchBackend(model.requires_grad_(False))


class TorchBackend:
    """A ``rookery.generate.Backend``: a torch model, run without gradients. States are made of tensors.

    Args:
        model: it stays as it is, so one that is being trained may be tried out.
    """

    def __init__(self, model: RWKV):
        self.model = model
        self.device = model.emb.weight.device
        self.dtype = model.emb.weight.dtype

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        return self.model.config

    def initial_state(self, batch: int = 1) -> State[Tensor]:
        """The state of ``batch`` streams before their first token."""
        return self.model.initial_state(batch)

    def forward(
        self, tokens: np.ndarray, state: State[Tensor], *, last_only: bool = False
    ) -> tuple[np.ndarray, State[Tensor]]:
        """Read tokens [B, T], ``PREFILL_CHUNK`` of each stream at a time.

        Returns:
            Logits [B, T, N], or [B, 1, N] where ``last_only``, float32; and the new state.
        """
        ids = torch.tensor(tokens, dtype=torch.int64, device=self.device)
        state = self._adopt(state)
        parts = []
        with torch.inference_mode():
            for chunk in ids.split(PREFILL_CHUNK, dim=1):
                logits, state = self.model(chunk, state, last_only=last_only)
                parts.append(logits.float().cpu().numpy())
        return (parts[-1] if last_only or len(parts) == 1 else np.concatenate(parts, axis=1)), state

    def to_numpy(self, state: State[Tensor]) -> State[np.ndarray]:
        """A float32 copy of a state."""
        return State(*(part.to("cpu", torch.float32, copy=True).numpy() for part in state))

    def from_numpy(self, state: State[np.ndarray]) -> State[Tensor]:
        """A state of tensors from one of arrays."""
        return self._adopt(State(*(torch.tensor(np.asarray(part, np.float32)) for part in state)))

    def _adopt(self, state: State[Tensor]) -> State[Tensor]:
        """The state in this model's types, for one that was made elsewhere; else the same tensors."""
        shifts = {"device": self.device, "dtype": self.dtype}
        wkv: dict[str, Any] = {"device": self.device, "dtype": torch.float32}
        return State(state.time_shift.to(**shifts), state.channel_shift.to(**shifts), state.wkv.to(**wkv))


def has_cuda() -> bool:
    """Whether there is a GPU that torch can use."""
    return torch.cuda.is_available()


def _device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if has_cuda() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"torch {torch.__version__} cannot use the device {name!r}: {reason}") from error
    return device
