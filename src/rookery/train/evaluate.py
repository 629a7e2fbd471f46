"""How well a model predicts text that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rookery.models import RWKV
from rookery.state import State
from rookery.train.data import IGNORED, Rows, TokenStream
from rookery.train.loss import summed_loss

__all__ = ["Score", "evaluate", "evaluate_documents", "on_device"]


@dataclass(frozen=True)
class Score:
    """Losses of many predicted tokens."""

    nats: float
    """Sum of the losses of all predicted tokens, in nats."""

    tokens: int
    """Predicted tokens."""

    bytes: int
    """Bytes that they stand for; 0 where the tokenizer does not say."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of text, or None where the bytes are not known."""
        return self.nats / math.log(2) / self.bytes if self.bytes else None

    def __add__(self, other: Score) -> Score:
        return Score(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)


def on_device(rows: Rows, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs, targets and starts of some rows as tensors."""
    starts = None if rows.starts is None else torch.from_numpy(rows.starts).to(device)
    return torch.from_numpy(rows.inputs).to(device), torch.from_numpy(rows.targets).to(device), starts


def evaluate(
    model: RWKV,
    stream: TokenStream,
    *,
    context: int,
    batch: int,
    token_bytes: np.ndarray,
    limit: int = 0,
    bf16: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Score | None:
    """Predict every token of a stream but the first, in windows of the context that begin with a new state.

    Args:
        stream: [n] tokens.
        context: T, tokens of a window; the last window is shorter.
        batch: windows at a time.
        token_bytes: [N] bytes of each id (``bytes_of_tokens``).
        limit: most tokens to predict, by leaving out windows evenly; 0 for all.
        bf16: compute in bfloat16 (autocast).
        stopped: asked before each batch; when it says yes, there is no score.

    Returns:
        The score, or None if it was stopped.
    """
    positions = stream.windows(context, limit=limit)
    total = Score(0.0, 0, 0)
    for first in range(0, len(positions), batch):
        if stopped():
            return None
        rows = stream.rows(positions[first : first + batch], context)
        total += _predict(model, rows, None, token_bytes, bf16)[0]
    return total


def evaluate_documents(
    model: RWKV,
    stream: TokenStream,
    *,
    context: int,
    batch: int,
    token_bytes: np.ndarray,
    limit: int = 0,
    bf16: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Score | None:
    """Predict every token of each document from all tokens before it in that document, however long it is.

    The state is new at the beginning of each document, and carried from call to call inside it. Documents are
    dealt out to lanes, the longest first, each to the lane with the least so far, so that lanes end together.

    Args:
        stream: documents, [n] tokens.
        context: T, tokens of one lane that are read in one call; the score does not depend on it.
        batch: lanes, B.
        token_bytes: [N] bytes of each id.
        limit: about the most tokens to predict, by leaving out documents evenly; 0 for all.
        bf16: compute in bfloat16 (autocast).
        stopped: asked before each call; when it says yes, there is no score.

    Returns:
        The score, or None if it was stopped.
    """
    documents = stream.documents()
    if limit:
        documents = documents[:: -(-len(stream.tokens) // limit)]
    lane_streams = _deal(documents, batch)
    # Every lane as long as the longest: what a lane has not is not predicted.
    longest = max(len(lane.tokens) for lane in lane_streams)
    total, state = Score(0.0, 0, 0), None
    for position in range(0, longest - 1, context):
        if stopped():
            return None
        rows = Rows(
            *map(_stack, zip(*(lane.rows([position], context) for lane in lane_streams), strict=True))
        )
        score, state = _predict(model, rows, state, token_bytes, bf16)
        total += score
    return total


def _deal(documents: list[np.ndarray], lanes: int) -> list[TokenStream]:
    hands: list[list[np.ndarray]] = [[] for _ in range(min(lanes, len(documents)))]
    sizes = [0] * len(hands)
    for document in sorted(documents, key=len, reverse=True):
        lane = sizes.index(min(sizes))
        hands[lane].append(document)
        sizes[lane] += len(document)
    return [_joined(hand) for hand in hands]


def _joined(documents: list[np.ndarray]) -> TokenStream:
    tokens = np.concatenate(documents)
    starts = np.zeros(len(tokens), dtype=bool)
    starts[np.cumsum([0, *map(len, documents[:-1])])] = True
    # The end of text that follows a document is not predicted here: what follows it is another lane's order.
    return TokenStream(tokens, starts, separated=False)


def _stack(parts: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.concatenate(parts)


@torch.no_grad()
def _predict(
    model: RWKV,
    rows: Rows,
    state: State[Tensor] | None,
    token_bytes: np.ndarray,
    bf16: bool,
) -> tuple[Score, State[Tensor]]:
    inputs, targets, starts = on_device(rows, model.emb.weight.device)
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=bf16):
        nats, after = summed_loss(model, inputs, targets, state, starts=starts)
    predicted = rows.targets[rows.targets != IGNORED]
    return Score(float(nats), len(predicted), int(token_bytes[predicted].sum())), after
