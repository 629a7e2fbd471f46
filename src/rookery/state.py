"""The recurrent state of an RWKV model: explicit, typed, of constant size.

A state is what the model knows of everything before the next token. It goes in and comes out of every call;
nothing of it is hidden in a model. A model never writes into a state that it was given, so keeping one
forks a conversation, and saving one saves it.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from rookery.config import ModelConfig
from rookery.errors import StateError

__all__ = ["State", "check_state", "initial_state", "state_bytes", "state_shapes"]

Array = TypeVar("Array")

# RWKV-4's running maximum before the first token: below any key, and finite so that no inf - inf appears.
NO_MAXIMUM = -1e30


class State(NamedTuple, Generic[Array]):
    """The state of ``B`` streams, as numpy arrays or torch tensors. Axis 1 is the stream, always."""

    time_shift: Array
    """[L, B, D]: the last input of each layer's time mixing (after its layer norm)."""

    channel_shift: Array
    """[L, B, D]: the last input of each layer's channel mixing (after its layer norm)."""

    wkv: Array
    """What the recurrence remembers, float32.

    RWKV-5, 6, 7: [L, B, H, K, V], a sum of outer products of keys and values, decayed.
    RWKV-4: [L, B, 3, A], the numerator, the denominator, and the running maximum both are scaled by.
    """


def state_shapes(config: ModelConfig, batch: int = 1) -> State[tuple[int, ...]]:
    """The shapes of the state of ``batch`` streams."""
    L, D = config.num_layers, config.width
    if config.version == "4":
        wkv = (L, batch, 3, config.attention_width)
    else:
        wkv = (L, batch, config.num_heads, config.head_size, config.head_size)
    return State((L, batch, D), (L, batch, D), wkv)


def initial_state(config: ModelConfig, batch: int = 1) -> State[np.ndarray]:
    """The state before the first token, float32: zeros, but for RWKV-4's running maximum (-1e30)."""
    state = State(*(np.zeros(shape, np.float32) for shape in state_shapes(config, batch)))
    if config.version == "4":
        state.wkv[:, :, 2] = NO_MAXIMUM
    return state


def state_bytes(config: ModelConfig) -> int:
    """Bytes of the float32 state of one stream."""
    return sum(int(np.prod(shape)) for shape in state_shapes(config)) * 4


def check_state(state: State[Any], config: ModelConfig, batch: int | None = None) -> int:
    """Check that a state has the shapes of a model; returns its number of streams.

    Raises:
        StateError: the state is of another model, or of another number of streams than ``batch``.
    """
    if not isinstance(state, State):
        raise StateError(f"expected a rookery.State, got {type(state).__name__}")
    shape = tuple(state.time_shift.shape)
    streams = shape[1] if len(shape) == 3 else 1
    expected = state_shapes(config, streams if batch is None else batch)
    for name, part, wanted in zip(State._fields, state, expected, strict=True):
        if tuple(part.shape) != wanted:
            raise StateError(
                f"state.{name} has shape {tuple(part.shape)}, but this RWKV-{config.version} model with "
                f"{wanted[1]} stream(s) needs {wanted}; is the state of another model?"
            )
    return expected.time_shift[1]
