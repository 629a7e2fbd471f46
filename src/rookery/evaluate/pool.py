"""The states of many streams, and reading tokens into some of them in one call.

    pool = open_pool(model, slots=32)
    pool.put(3, None)                                        # a new stream in slot 3
    [(log_probabilities, likeliest)] = pool.score([(3, tokens, targets)])
    state = pool.get(3)                                      # to go on from here later, or more than once

The native engine reads streams of any lengths as they are. Other backends read streams of one length: there,
a call goes on with as many tokens as the shortest stream has left, until none has any. Nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from rookery.errors import StateError
from rookery.generate import Backend, LanguageModel
from rookery.generate.native_backend import NativeBackend
from rookery.state import State, initial_state

__all__ = ["NO_TARGETS", "BackendPool", "NativePool", "Pool", "Request", "log_softmax", "open_pool"]

Request = tuple[int, np.ndarray, np.ndarray]
"""Slot, tokens [T], and targets [n, 2]: after which of the tokens (ascending), and the id."""

NO_TARGETS = np.empty((0, 2), np.int64)

# Float32 logits that a backend may give in one call: 256 MB.
_LOGITS_AT_ONCE = 1 << 26


class Pool(Protocol):
    """The states of ``slots`` streams."""

    @property
    def slots(self) -> int:
        """How many streams there is room for."""
        ...

    def put(self, slot: int, state: State[Any] | None) -> None:
        """Give a stream a state that ``get`` returned; None is that before the first token."""
        ...

    def get(self, slot: int) -> State[Any]:
        """The state of a stream; what is read later does not change it."""
        ...

    def score(self, requests: Sequence[Request]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Read tokens; log-probabilities [n] of each request's targets, and which are likeliest."""
        ...

    def advance(self, requests: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
        """Read tokens; the logits after the last of each, [requests, N] float32."""
        ...


def open_pool(model: LanguageModel, slots: int) -> Pool:
    """The pool that suits what runs the model."""
    if isinstance(model.backend, NativeBackend):
        return NativePool(model.backend, slots)
    return BackendPool(model.backend, slots)


class NativePool:
    """States in the native engine: one array of each part, written in place."""

    def __init__(self, backend: NativeBackend, slots: int):
        self.slots = slots
        self._model = backend.model
        self._fresh = initial_state(backend.config)
        self._states = initial_state(backend.config, slots)

    def put(self, slot: int, state: State[Any] | None) -> None:
        """Copy a state into a slot."""
        for part, new in zip(self._states, self._fresh if state is None else state, strict=True):
            part[:, slot] = new[:, 0]

    def get(self, slot: int) -> State[Any]:
        """A copy of the state in a slot."""
        return State(*(part[:, slot : slot + 1].copy() for part in self._states))

    def score(self, requests: Sequence[Request]) -> list[tuple[np.ndarray, np.ndarray]]:
        """One call of the engine."""
        return self._model.score(requests, self._states)  # pyright: ignore[reportArgumentType]

    def advance(self, requests: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
        """One call of the engine."""
        logits = self._model.advance(requests, self._states)  # pyright: ignore[reportArgumentType]
        return _finite(logits)


class BackendPool:
    """States of any backend, each by itself; streams of one length are read together."""

    def __init__(self, backend: Backend, slots: int):
        self.slots = slots
        self._backend = backend
        self._states: list[State[Any] | None] = [None] * slots

    def put(self, slot: int, state: State[Any] | None) -> None:
        """Keep a state: no backend writes into one."""
        self._states[slot] = state

    def get(self, slot: int) -> State[Any]:
        """The state in a slot."""
        state = self._states[slot]
        return self._backend.initial_state() if state is None else state

    def score(self, requests: Sequence[Request]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Read what comes before the first target without its logits, then the rest with them."""
        quiet = [
            (slot, tokens[: int(targets[0, 0]) if len(targets) else len(tokens)])
            for slot, tokens, targets in requests
        ]
        self._read(quiet, [NO_TARGETS] * len(requests), last=False)
        loud = [
            (slot, tokens[len(before) :])
            for (slot, tokens, _), (_, before) in zip(requests, quiet, strict=True)
        ]
        shifted = [
            targets - np.array([len(before), 0])
            for (_, _, targets), (_, before) in zip(requests, quiet, strict=True)
        ]
        return self._read(loud, shifted, last=False)[0]

    def advance(self, requests: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
        """Read, and keep the logits of the last tokens alone."""
        return self._read(requests, [NO_TARGETS] * len(requests), last=True)[1]

    def _read(
        self, spans: Sequence[tuple[int, np.ndarray]], targets: Sequence[np.ndarray], *, last: bool
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
        N = self._backend.config.vocab_size
        found = [(np.empty(len(each)), np.empty(len(each), bool)) for each in targets]
        final = np.empty((len(spans), N) if last else (0, N), np.float32)
        wanted = any(map(len, targets))
        place = 0
        while True:
            active = [i for i, (_, tokens) in enumerate(spans) if len(tokens) > place]
            if not active:
                return found, final
            step = min(len(spans[i][1]) for i in active) - place
            if wanted:
                step = min(step, max(1, _LOGITS_AT_ONCE // (len(active) * N)))
            tokens = np.stack([spans[i][1][place : place + step] for i in active])
            logits = self._forward([spans[i][0] for i in active], tokens, last_only=not wanted)
            for row, i in enumerate(active):
                if last and len(spans[i][1]) == place + step:
                    final[i] = logits[row, -1]
                after = targets[i][:, 0]
                inside = slice(*np.searchsorted(after, [place, place + step]))
                if inside.start == inside.stop:
                    continue
                rows, which = np.unique(after[inside] - place, return_inverse=True)
                values, ids = log_softmax(logits[row, rows]), targets[i][inside, 1]
                found[i][0][inside] = values[which, ids]
                found[i][1][inside] = values.argmax(1)[which] == ids
            place += step

    def _forward(self, slots: list[int], tokens: np.ndarray, *, last_only: bool) -> np.ndarray:
        """Logits [streams, T, N], or [streams, 1, N]; the states move on."""
        before = self._backend.initial_state(len(slots))
        for index, slot in enumerate(slots):
            state = self._states[slot]
            if state is not None:
                for part, own in zip(before, state, strict=True):
                    part[:, index] = own[:, 0]
        logits, after = self._backend.forward(tokens, before, last_only=last_only)
        for index, slot in enumerate(slots):
            self._states[slot] = State(*(part[:, index : index + 1] for part in after))
        return _finite(logits)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities [..., N] of logits, float64."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def _finite(logits: np.ndarray) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise StateError(
            "the logits hold NaN or infinity: the weights do (see `rookery inspect`), or the model overflowed"
        )
    return logits
