"""Running a model with torch: CPU, CUDA and whatever else torch runs on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rookery.checkpoints import Checkpoint, Quantized
from rookery.config import ModelConfig
from rookery.errors import ConfigError
from rookery.models import RWKV, from_checkpoint
from rookery.models.quantized import quantized_from_checkpoint
from rookery.state import State

__all__ = ["PREFILL_CHUNK", "TorchBackend", "has_cuda", "load"]

PREFILL_CHUNK = 512
"""Tokens of each stream that go through the model at once, so that a long prompt needs no more memory."""

# Those of rookery.native.quantize, which cannot be imported where the engine was not built.
_TYPES = ("q8", "q4")


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
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``; or ``"q8"`` or ``"q4"``: matrices in blocks,
            made as the native engine makes them, and everything else in bfloat16, on a CPU in float32. By
            default float32 on a CPU; elsewhere the blocks of a quantized file as they are, and of others the
            narrowest type that holds every weight exactly.
        threads: of the CPU, for the whole process; by default torch's choice.

    Raises:
        ConfigError: torch cannot use the device.
        CheckpointError: the tensors are not one model.
        MissingExtraError: blocks are to be made, and the native engine, which makes them, was not built.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    where = _device(device)
    if dtype is None and where.type == "cpu":
        dtype = "float32"
    if dtype in _TYPES:
        from rookery.native.quantize import quantize

        checkpoint = quantize(checkpoint, dtype, threads=threads)
    if dtype in _TYPES or (dtype is None and _has_blocks(checkpoint)):
        rest = torch.float32 if where.type == "cpu" else torch.bfloat16
        model = quantized_from_checkpoint(checkpoint, device=where, dtype=rest)
    else:
        kind = None if dtype is None else getattr(torch, dtype)
        model = from_checkpoint(checkpoint, device=where, dtype=kind)
    return TorchBackend(model.requires_grad_(False), graphs=where.type == "cuda")


class TorchBackend:
    """A ``rookery.generate.Backend``: a torch model, run without gradients. States are made of tensors.

    Args:
        model: it stays as it is, so one that is being trained may be tried out.
        prefill_chunk: tokens of each stream that go through the model at once; the memory that a call takes
            grows with them: activations, and logits [B, chunk, N] where all are asked for.
        graphs: record the step of one token of one stream as a CUDA graph when it is first needed; from then
            on, the weights must stay as they are.

    Raises:
        ConfigError: ``prefill_chunk`` is below 1.
    """

    def __init__(self, model: RWKV, *, prefill_chunk: int = PREFILL_CHUNK, graphs: bool = False):
        if prefill_chunk < 1:
            raise ConfigError(f"prefill_chunk must be 1 or more, not {prefill_chunk}")
        self.model = model
        self.prefill_chunk = prefill_chunk
        self.graphs = graphs
        # Norms are dense in every model.
        self.device = model.ln_out.weight.device
        self.dtype = model.ln_out.weight.dtype

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
        """Read tokens [B, T], ``prefill_chunk`` of each stream at a time.

        Returns:
            Logits [B, T, N], or [B, 1, N] where ``last_only``, float32; and the new state.
        """
        if self.graphs and tokens.shape == (1, 1):
            return self._step(tokens, state)
        if last_only:
            # Reading the head again for every chunk would be for nothing.
            T = tokens.shape[1]
            ahead = (T - 1) // self.prefill_chunk * self.prefill_chunk
            state, tokens = self.advance(tokens[:, :ahead], state), tokens[:, ahead:]
        ids = self._ids(tokens)
        state = self._adopt(state)
        parts = []
        with torch.inference_mode():
            for chunk in ids.split(self.prefill_chunk, dim=1):
                logits, state = self.model(chunk, state, last_only=last_only)
                parts.append(logits.float().cpu().numpy())
        return (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)), state

    def advance(self, tokens: np.ndarray, state: State[Tensor]) -> State[Tensor]:
        """The state after tokens [B, T], T 0 or more, without logits and without waiting for the device."""
        ids = self._ids(tokens)
        state = self._adopt(state)
        with torch.inference_mode():
            for chunk in ids.split(self.prefill_chunk, dim=1) if ids.shape[1] else ():
                _, state = self.model(chunk, state, last_only=True, head=False)
        return state

    def _step(self, tokens: np.ndarray, state: State[Tensor]) -> tuple[np.ndarray, State[Tensor]]:
        """One token of one stream by the recorded step, into whose memory the state goes, and out again."""
        ids, memory, logits, run = self._recorded
        ids.copy_(self._ids(tokens[0]))
        for here, part in zip(memory, state, strict=True):
            here.copy_(part)
        with torch.inference_mode():
            run()
        return logits[:, None].float().cpu().numpy(), State(*(part.clone() for part in memory))

    @cached_property
    def _recorded(self) -> tuple[Tensor, State[Tensor], Tensor, Callable[[], None]]:
        """The memory of a token, a state and logits, and what reads the token."""
        from rookery.generate.batch.steps import StepRecorder

        ids = torch.zeros(1, dtype=torch.int64, device=self.device)
        logits = torch.zeros(1, self.config.vocab_size, dtype=self.dtype, device=self.device)
        memory = self.initial_state()
        return ids, memory, logits, StepRecorder(self.model).record(ids, memory, logits)

    def _ids(self, tokens: np.ndarray) -> Tensor:
        return torch.tensor(tokens, dtype=torch.int64, device=self.device)

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


def _has_blocks(checkpoint: Checkpoint) -> bool:
    return any(isinstance(weight, Quantized) for weight in checkpoint.tensors.values())


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
