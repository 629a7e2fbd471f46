"""How far back a change of one token is felt: what another token in its place does to later predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rookery.models import RWKV
from rookery.state import State

__all__ = ["Influence", "change", "choose_changes", "join_states", "replacements"]

# Logits that are held at once, of all streams: 256 MiB in float64.
_LOGITS = 1 << 25


@dataclass(frozen=True, kw_only=True)
class Influence:
    """What changes of single tokens did to the predictions after them."""

    positions: np.ndarray
    """[M] int: the tokens that were replaced, one at a time."""

    replacements: np.ndarray
    """[M] int: what stood in their place."""

    divergence: np.ndarray
    """[M, E] float32, bits: KL(prediction of the text || prediction after the change), by distance. Column d
    is the prediction made d tokens after the changed one; column 0 has just read it."""


def choose_changes(tokens: np.ndarray, vocab_size: int, count: int) -> tuple[np.ndarray, int]:
    """Which tokens to replace, and how many predictions after each to look at.

    All have the same number after them, half of the text but at most 512, so that every distance is measured
    at every position.

    Returns:
        Positions [M], evenly over the text; and the number of predictions E. None and 0 for a text so short
        that there is nothing to predict.
    """
    T = len(tokens)
    reach = min(512, T // 2)
    if reach < 1 or vocab_size < 2 or count < 1:
        return np.empty(0, np.int64), 0
    last = T - reach
    return np.unique(np.linspace(0, last, min(count, last + 1)).round().astype(np.int64)), reach


def replacements(tokens: np.ndarray, positions: np.ndarray, vocab_size: int, seed: int) -> np.ndarray:
    """[M]: another token for each position, one that occurs in the text if it has two different ones."""
    generator = np.random.default_rng(seed)
    known = np.unique(tokens)
    pool = known if len(known) > 1 else np.arange(vocab_size)
    chosen = []
    for position in positions:
        # One of the others, each equally likely: shift past the token itself.
        others = pool[pool != tokens[position]]
        chosen.append(others[generator.integers(len(others))])
    return np.array(chosen, np.int64)


def join_states(states: Sequence[State[Tensor]]) -> State[Tensor]:
    """The states of single streams as one of many."""
    return State(*(torch.cat(parts, dim=1) for parts in zip(*states, strict=True)))


def change(
    model: RWKV,
    tokens: np.ndarray,
    positions: np.ndarray,
    replaced: np.ndarray,
    states: Sequence[State[Tensor]],
    reach: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Influence:
    """Read on from each position twice, with the token that is there and with another one.

    Args:
        model: the model.
        tokens: [T] the text.
        positions: [M] the tokens to replace.
        replaced: [M] what to put there.
        states: M states of one stream, each before the token at its position.
        reach: predictions after each change.
        advance: is told how many tokens were read, all streams together.
    """
    M = len(positions)
    device = model.emb.weight.device
    divergence = np.zeros((M, reach), np.float32)
    # As many streams at once, the text's and the changed ones, as leave room for a few tokens' logits.
    streams = max(1, min(M, _LOGITS // (2 * 8 * model.config.vocab_size)))
    span = max(1, min(256, _LOGITS // (2 * streams * model.config.vocab_size)))
    for first in range(0, M, streams):
        part = slice(first, first + streams)
        rows = np.stack([tokens[p : p + reach] for p in positions[part]])
        other = rows.copy()
        other[:, 0] = replaced[part]
        ids = torch.from_numpy(np.concatenate([rows, other]).astype(np.int64)).to(device)
        state = join_states([*states[part], *states[part]])
        for begin in range(0, reach, span):
            logits, state = model(ids[:, begin : begin + span], state)
            of_text, changed = F.log_softmax(logits.double(), -1).chunk(2)
            # kl_div(input, target) is KL(target || input). In float64: far from a change it is less than
            # float32 rounds away.
            apart = F.kl_div(changed, of_text, reduction="none", log_target=True).sum(-1) / math.log(2)
            divergence[part, begin : begin + span] = apart.clamp(min=0).cpu().numpy()
            advance(logits.shape[0] * logits.shape[1])
    return Influence(positions=positions, replacements=replaced, divergence=divergence)
