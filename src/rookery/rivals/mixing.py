"""What rivals' mixings share: their base, positions in documents, and spans between documents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from rookery.models.time_mixing import TimeMixing
from rookery.rivals.config import RivalConfig

__all__ = ["ANY", "RivalMixing", "over_documents", "positions", "visible"]

ANY = -1
"""In the shape of a state: an axis of any length."""

CellState = TypeVar("CellState", bound=tuple[Tensor, ...])


class RivalMixing(TimeMixing[RivalConfig]):
    """Time mixing of a rival, whose state is a ``NamedTuple`` of tensors with the streams on axis 0."""

    @abstractmethod
    def state_shapes(self, streams: int) -> tuple[tuple[int, ...], ...]:
        """The shapes of the parts of its state; ``ANY`` where an axis grows with the text."""


def positions(tokens: int, before: Tensor, starts: Tensor | None) -> Tensor:
    """How many tokens of its document come before each token.

    Args:
        tokens: T.
        before: [B] int64, the tokens read of the document that each row goes on with.
        starts: [B, T] bool, the first token of each document.

    Returns:
        [B, T] int64.
    """
    index = torch.arange(tokens, device=before.device)
    if starts is None:
        return before[:, None] + index
    first = torch.where(starts, index, -before[:, None]).cummax(1).values
    return index - first


def visible(position: Tensor, cached: int) -> Tensor:
    """Which tokens each token sees: itself and those before it in its document.

    Args:
        position: [B, T], as ``positions`` gives them.
        cached: S, how many tokens before the row are kept.

    Returns:
        [B, T, S + T] bool.
    """
    T = position.shape[1]
    own = torch.arange(cached, cached + T, device=position.device)
    seen = torch.arange(cached + T, device=position.device)
    first = own - position
    return (seen >= first[..., None]) & (seen <= own[:, None])


def over_documents(
    run: Callable[[Tensor, CellState], tuple[Tensor, CellState]],
    x: Tensor,
    state: CellState,
    starts: Tensor | None,
) -> tuple[Tensor, CellState]:
    """Run a cell over the spans between the tokens at which any row starts a document.

    Args:
        run: (x [B, t, D], state) -> (y [B, t, A], state), over one span.
        x: [B, T, D].
        state: tensors [B, ..] that are zero before the first token of a document.
        starts: [B, T] bool.
    """
    if starts is None:
        return run(x, state)
    edges = sorted({0, *starts.any(0).nonzero()[:, 0].tolist(), x.shape[1]})
    pieces = []
    for first, last in pairwise(edges):
        new = starts[:, first]
        fresh: Any = (part.masked_fill(new.view(-1, *(1,) * (part.dim() - 1)), 0) for part in state)
        y, state = run(x[:, first:last], type(state)(*fresh))
        pieces.append(y)
    return torch.cat(pieces, dim=1), state
