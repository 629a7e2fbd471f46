"""States as trees: tuples of tensors and of further tuples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

__all__ = ["leaves", "map_state", "state_bytes"]


def leaves(state: Any) -> Iterator[Tensor]:
    """The tensors of a state, in order."""
    if isinstance(state, Tensor):
        yield state
    elif state is not None:
        for part in state:
            yield from leaves(part)


def map_state(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """A state of the same form, with a function's result in the place of each tensor."""
    if isinstance(state, Tensor):
        return function(state)
    if state is None:
        return None
    parts = [map_state(function, part) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


def state_bytes(state: Any) -> int:
    """Bytes of the numbers in a state, of all its streams together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in leaves(state))
