"""Streams that are decoded together, and that join and leave between steps.

A step reads one token of every stream and chooses the next one, in one pass over the weights. All that it
reads and writes lies in slots of memory allocated once. The streams are in the first slots, and the step runs
over the least of a few batch sizes (1, 2, 4, ...) that holds them: each size is recorded once as a CUDA
graph. Rows of a batch do not see each other, so what lies in an empty slot disturbs nobody.

    slot                    0         1         2         3
    unread token            17        4         -         99       [S]
    state                   ...                                    [L, S, ...]
    sampler, logits         ...                                    [S], [S, N]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from rookery.errors import ConfigError
from rookery.generate.batch.recorded import new_pool, record
from rookery.generate.batch.sampling import Needs
from rookery.generate.batch.slots import SamplingSlots
from rookery.generate.batch.steps import StepRecorder
from rookery.generate.sampling import Sampler, SamplingParams
from rookery.generate.torch_backend import TorchBackend
from rookery.state import State, check_state

__all__ = ["BatchDecoder", "Left", "batch_sizes"]


class Left(NamedTuple):
    """What a stream was when it left; ``join(unread, state=state, sampling=sampler)`` goes on with it."""

    state: State[torch.Tensor]
    """After all tokens but the last, of one stream."""

    unread: list[int]
    """The last token: the one that was chosen last, or that the prompt ended with."""

    sampler: Sampler
    """What it has observed is there only if it had penalties."""


def batch_sizes(most: int) -> list[int]:
    """1, 2, 4, ... and the largest."""
    return [*(1 << i for i in range((most - 1).bit_length())), most]


class BatchDecoder:
    """Decodes streams together.

    Tokens, states, parameters and random numbers are those that each stream would have alone, but for
    rounding: of matrix products, which may differ between batch sizes, and of what lies between them, which
    is in float32 for up to four streams of a dense RWKV-7 on a GPU (``rookery.generate.batch.few``).

    Args:
        backend: whose model runs. While the decoder lives, its weights must stay as they are.
        max_streams: S, the most streams at a time.
        sizes: ascending batch sizes to record, the last of which is ``max_streams``; by default
            ``batch_sizes(max_streams)``.
        implementation: of the recurrence (see ``rookery.ops``), or ``"few streams"``; see ``StepRecorder``.

    Attributes:
        implementations: by batch size what a step is computed by; None stands for the recurrence's default.

    Raises:
        ConfigError: the sizes are not ascending, or do not end with ``max_streams``; or few streams are
            forced of a model that those kernels do not read.
    """

    def __init__(
        self,
        backend: TorchBackend,
        *,
        max_streams: int = 32,
        sizes: Sequence[int] | None = None,
        implementation: str | None = None,
    ):
        if max_streams < 1:
            raise ConfigError(f"max_streams must be 1 or more, not {max_streams}")
        self.sizes = batch_sizes(max_streams) if sizes is None else list(sizes)
        ascending = self.sizes == sorted(set(self.sizes)) and self.sizes[:1] > [0]
        if not ascending or self.sizes[-1] != max_streams:
            raise ConfigError(f"sizes must ascend from 1 or more to {max_streams}, not {self.sizes}")
        self.backend, self.max_streams = backend, max_streams
        config, device = backend.config, backend.device
        self._state = backend.initial_state(max_streams)
        self._tokens = torch.zeros(max_streams, dtype=torch.int64, device=device)
        # The same, but with NO_TOKEN where there was nothing to choose.
        self._chosen = torch.zeros_like(self._tokens)
        self._logits = torch.zeros(max_streams, config.vocab_size, dtype=backend.dtype, device=device)
        self._sampling = SamplingSlots(max_streams, config.vocab_size, device)
        self._slots: dict[int, int] = {}
        self._params: dict[int, SamplingParams] = {}
        self._joined = 0
        self._pool = new_pool(device)
        recorder = StepRecorder(backend.model, implementation=implementation, pool=self._pool)
        self.implementations = {size: recorder.implementation(size) for size in self.sizes}
        # The largest first: smaller ones then find room in its memory.
        self._models = {size: self._record_model(size, recorder) for size in reversed(self.sizes)}
        self._samplers: dict[tuple[int, Needs], Callable[[], None]] = {}

    @property
    def streams(self) -> list[int]:
        """Those that are here, in the order in which they joined."""
        return sorted(self._slots)

    def join(
        self,
        tokens: Sequence[int] | np.ndarray,
        *,
        state: State[Any] | None = None,
        sampling: SamplingParams | Sampler | None = None,
    ) -> int:
        """Begin a stream: all tokens but the last are read now, the last one with the next step.

        Args:
            tokens: at least one id.
            state: of one stream, before the tokens, of tensors or arrays; None at the start of a text.
            sampling: parameters, or a sampler to go on with; it is left as it is. ``stop`` and ``max_tokens``
                are for the caller to heed.

        Returns:
            The stream's name, a number that is never used again.

        Raises:
            ConfigError: all slots are taken, there are no tokens, or one is outside of the vocabulary.
            StateError: the state is of another model or of several streams.
        """
        free = [slot for slot in range(self.max_streams) if slot not in self._slots.values()]
        if not free:
            raise ConfigError(f"all {self.max_streams} slots are taken; let a stream leave first")
        ids, slot = self._ids(tokens), free[0]
        if state is None:
            state = self.backend.initial_state()
        else:
            check_state(state, self.backend.config, 1)
            state = self.backend.from_numpy(state) if isinstance(state.wkv, np.ndarray) else state
        sampler = sampling if isinstance(sampling, Sampler) else Sampler(sampling or SamplingParams())
        self._sampling.put(slot, sampler)
        state = self.backend.advance(ids[None, :-1], state)
        for memory, part in zip(self._state, state, strict=True):
            memory[:, slot].copy_(part[:, 0])
        self._tokens[slot] = int(ids[-1])
        self._joined += 1
        self._slots[self._joined], self._params[self._joined] = slot, sampler.params
        return self._joined

    def step(self) -> dict[int, int]:
        """Read the unread token of every stream and choose the next one.

        Returns:
            Stream -> token. ``NO_TOKEN`` stands for none: its logits hold NaN or infinity, or every token is
            banned; let it leave, what it would say next means nothing.
        """
        return {stream: tokens[0] for stream, tokens in self.steps(1).items()}

    def steps(self, count: int) -> dict[int, list[int]]:
        """So many steps, with one wait for the device at their end; see ``step``."""
        if not self._slots or count < 1:
            return {stream: [] for stream in self._slots}
        size = self._close_ranks()
        needs = Needs()
        for params in self._params.values():
            needs |= Needs.of(params)
        choose = self._sampler(size, needs)
        chosen = torch.empty(count, size, dtype=torch.int64, device=self.backend.device)
        with torch.inference_mode():
            for tokens in chosen:
                self._models[size]()
                choose()
                tokens.copy_(self._chosen[:size])
        columns = chosen.T.tolist()
        return {stream: columns[self._slots[stream]] for stream in self.streams}

    def leave(self, stream: int) -> Left:
        """End a stream; its slot is free for another one.

        Raises:
            ConfigError: there is no such stream.
        """
        slot = self._slot(stream)
        state = State(*(memory[:, slot : slot + 1].clone() for memory in self._state))
        sampler = self._sampling.take(slot, self._params.pop(stream))
        del self._slots[stream]
        return Left(state, [int(self._tokens[slot])], sampler)

    def logits(self, stream: int) -> np.ndarray:
        """[N] float32: what the last step chose the stream's token by.

        Raises:
            ConfigError: there is no such stream.
        """
        return self._logits[self._slot(stream)].float().cpu().numpy()

    def _close_ranks(self) -> int:
        """Move streams so that all are in the first slots; how many slots the next step runs over."""
        size = next(size for size in self.sizes if size >= len(self._slots))
        taken = set(self._slots.values())
        holes = [slot for slot in range(size) if slot not in taken]
        for stream, slot in self._slots.items():
            if slot >= size:
                target = holes.pop(0)
                for memory in self._state:
                    memory[:, target].copy_(memory[:, slot])
                for memory in (self._tokens, self._logits):
                    memory[target].copy_(memory[slot])
                self._sampling.move(slot, target)
                self._slots[stream] = target
        return size

    def _record_model(self, size: int, recorder: StepRecorder) -> Callable[[], None]:
        """From unread tokens and states to logits and states, over the first ``size`` slots."""
        state = State(*(memory[:, :size] for memory in self._state))
        return recorder.record(self._tokens[:size], state, self._logits[:size])

    def _sampler(self, size: int, needs: Needs) -> Callable[[], None]:
        """From logits to tokens; recorded when it is first needed."""
        known = self._samplers.get((size, needs))
        if known is not None:
            return known
        logits, sampling = self._logits[:size], self._sampling

        def run() -> None:
            tokens = sampling.choose(logits, needs)
            self._chosen[:size].copy_(tokens)
            self._tokens[:size].copy_(tokens.clamp(min=0))
            sampling.took(tokens, needs)

        warm_up = partial(sampling.choose, logits, needs)
        with torch.inference_mode():
            made = record(run, warm_up=warm_up, device=self.backend.device, pool=self._pool)
        self._samplers[size, needs] = made
        return made

    def _ids(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        ids = np.asarray(tokens)
        size = self.backend.config.vocab_size
        if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
            raise ConfigError(f"a stream begins with a row of at least one id, not {tokens!r:.60}")
        # On a GPU nothing else would look.
        if ids.min() < 0 or ids.max() >= size:
            bad = int(ids[(ids < 0) | (ids >= size)][0])
            raise ConfigError(f"token {bad} is outside of the vocabulary of {size}")
        return ids

    def _slot(self, stream: int) -> int:
        if stream not in self._slots:
            raise ConfigError(f"there is no stream {stream}; there are {self.streams}")
        return self._slots[stream]
