"""What the layers of a model do at the last token of each call, seen from outside: models know nothing of it.

A hook in front of each layer's time mixing sees its input, and computes decays and learning rates once more
from the layer's parameters, as the layer does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from rookery.config import Version
from rookery.models import RWKV
from rookery.models.model import Block
from rookery.models.parts import low_rank
from rookery.models.time_mixing import TimeMixingState
from rookery.ops.fused import rwkv6_decay, token_shift
from rookery.ops.tensors import full_precision

__all__ = ["FIXED_DECAY", "Seen", "decay_of_weights", "half_lives", "watching"]

FIXED_DECAY: frozenset[Version] = frozenset({"4", "5.0", "5.1", "5.2"})
"""Versions whose decays are weights; in the others they depend on the data."""


class Seen(NamedTuple):
    """One layer at one token."""

    log_decay: Tensor
    """[A] float: the natural logarithm of each key channel's decay."""

    learning_rate: Tensor | None
    """[H]: RWKV-7's in-context learning rate, the mean of a head's channels; None in other versions."""


def decay_of_weights(mixing: Any) -> Tensor:
    """[A]: the logarithm of the decay of an RWKV-4 or 5 layer, whatever the text."""
    if hasattr(mixing, "log_decay"):
        return mixing.log_decay().flatten()
    return -torch.exp(full_precision(mixing.time_decay))


def half_lives(log_decay: Tensor) -> Tensor:
    """Tokens after which half is left of what a channel remembers; infinity where nothing decays."""
    return math.log(2) / log_decay.abs()


@contextmanager
def watching(model: RWKV) -> Iterator[list[Seen]]:
    """While this is open, every call of the model puts what it saw into the list: one entry for a layer.

    Entries are of stream 0 at the last token of the call.
    """
    seen: list[Seen] = []
    look = _LOOKS[model.config.version]

    def hook(mixing: Any, inputs: tuple[Any, ...]) -> None:
        if mixing.depth.layer == 0:
            seen.clear()
        x: Tensor = inputs[0]
        state: TimeMixingState | None = inputs[1]
        if x.shape[1] > 1:
            previous = x[:1, -2]
        else:
            previous = torch.zeros_like(x[:1, 0]) if state is None else state.shift[:1]
        seen.append(look(mixing, x[:1, -1:], previous))

    mixings = [cast("Block", block).att for block in model.blocks]
    handles = [mixing.register_forward_pre_hook(hook) for mixing in mixings]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _look_fixed(mixing: Any, x: Tensor, previous: Tensor) -> Seen:
    return Seen(decay_of_weights(mixing), None)


def _look6(mixing: Any, x: Tensor, previous: Tensor) -> Seen:
    x_w, *_ = mixing.shifted(x, previous, None)
    moved = low_rank(x_w, mixing.time_decay_w1, mixing.time_decay_w2, torch.tanh)
    log_w = rwkv6_decay(moved, mixing.time_decay, heads=mixing.config.num_heads)
    return Seen(log_w.flatten(), None)


def _look7(mixing: Any, x: Tensor, previous: Tensor) -> Seen:
    x_w, x_a = token_shift(x, previous, (mixing.x_w, mixing.x_a))
    w = low_rank(x_w, mixing.w1, mixing.w2, torch.tanh)
    log_w = -math.exp(-0.5) * torch.sigmoid(full_precision(mixing.w0) + full_precision(w))
    rate = torch.sigmoid(mixing.a0 + low_rank(x_a, mixing.a1, mixing.a2))
    return Seen(log_w.flatten(), rate.view(mixing.config.num_heads, -1).float().mean(-1))


_LOOKS: dict[Version, Callable[[Any, Tensor, Tensor], Seen]] = {
    **dict.fromkeys(FIXED_DECAY, _look_fixed),
    "6": _look6,
    "7": _look7,
}
