"""How probable texts are after others: the engine under every evaluation.

    engine = LikelihoodEngine(model)
    scores = engine.score([Pair(context, choice) for choice in choices])
    scores[0].total, scores[0].greedy

Contexts and continuations are token ids. A recurrent model needs no windows: a continuation of any length
is read in pieces, the state carried. What several pairs begin with alike is read once (``prefix_tree``), and
the head is computed only where a token is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rookery.errors import ConfigError
from rookery.evaluate import prefix_tree
from rookery.evaluate.pool import NO_TARGETS, open_pool
from rookery.generate import LanguageModel
from rookery.state import State, state_bytes

__all__ = ["Finished", "LikelihoodEngine", "Pair", "Report", "Scores"]

# Tokens of a call: 16 full passes of the native engine, and a second or two of a small model.
_TOKENS_AT_ONCE = 2048
# Memory for the states of a call.
_STATE_BYTES = 1 << 29


@dataclass(frozen=True)
class Pair:
    """A continuation to be scored, and what comes before it; at least one token each."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Scores:
    """Of each token of a continuation, how probable it was after everything before it."""

    log_probabilities: np.ndarray
    """[n] float64, natural logarithms."""

    likeliest: np.ndarray
    """[n] bool: no token was more probable."""

    @property
    def total(self) -> float:
        """The log-likelihood of the whole continuation."""
        return float(self.log_probabilities.sum())

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token at each place gives the continuation."""
        return bool(self.likeliest.all())


Report = Callable[[int, int], None]
"""Is told how many tokens have been read, and of how many."""

Finished = Callable[[int, Scores], None]
"""Is given a pair's number and its scores, as soon as they are known."""


class LikelihoodEngine:
    """Scores pairs with a model of any backend.

    Args:
        model: with or without a tokenizer.
        tokens_at_once: most tokens that are read in one call, and so between two reports.

    Attributes:
        tokens_read: by the model so far, what was shared counted once.
    """

    def __init__(self, model: LanguageModel, *, tokens_at_once: int | None = None):
        tokens_at_once = _TOKENS_AT_ONCE if tokens_at_once is None else tokens_at_once
        if tokens_at_once < 1:
            raise ConfigError(f"tokens_at_once must be 1 or more, not {tokens_at_once}")
        self.model = model
        self.tokens_read = 0
        self._tokens_at_once = tokens_at_once
        slots = _STATE_BYTES // state_bytes(model.config)
        self._pool = open_pool(model, int(min(max(slots, 1), 256, tokens_at_once)))

    def score(
        self,
        pairs: Sequence[Pair],
        *,
        report: Report | None = None,
        finished: Finished | None = None,
    ) -> list[Scores]:
        """The scores of each pair, in order.

        Raises:
            ConfigError: a context or a continuation has no tokens, or a token is outside of the vocabulary.
            StateError: the model's logits are not finite.
        """
        for index, pair in enumerate(pairs):
            self._check(index, pair)
        whole = [np.array(pair.context + pair.continuation, np.int64) for pair in pairs]
        # The last token is predicted and need not be read.
        work = _Work(whole, [len(pair.context) - 1 for pair in pairs], finished)
        stack = [_Reading(root, None) for root in prefix_tree.build([ids[:-1] for ids in whole])]
        # The longest are last, and so come first: like lengths together, and no surprise at the end.
        stack.sort(key=lambda reading: len(reading.node.tokens))
        total = sum(map(_tokens_of, (reading.node for reading in stack)))
        done = 0
        while stack:
            batch: list[tuple[_Reading, int]] = []
            room = self._tokens_at_once
            while stack and room and len(batch) < self._pool.slots:
                reading = stack.pop()
                count = min(len(reading.node.tokens) - reading.read, room)
                batch.append((reading, count))
                room -= count
            done += self._tokens_at_once - room
            self._read(batch, work, stack)
            self.tokens_read += self._tokens_at_once - room
            if report is not None:
                report(done, total)
        return work.scores

    def _read(self, batch: list[tuple[_Reading, int]], work: _Work, stack: list[_Reading]) -> None:
        requests, wanted = [], []
        for slot, (reading, count) in enumerate(batch):
            self._pool.put(slot, reading.state)
            tokens = reading.node.tokens[reading.read : reading.read + count]
            wanted.append(work.wanted(reading.node, reading.read, count))
            requests.append((slot, tokens, wanted[-1].targets))
        found = self._pool.score(requests)
        for slot, (reading, count) in enumerate(batch):
            node, read = reading.node, reading.read + count
            if read < len(node.tokens):
                stack.append(_Reading(node, self._pool.get(slot), read))
            elif node.children:
                state = self._pool.get(slot)
                stack += [_Reading(child, state) for child in node.children]
            work.fill(wanted[slot], *found[slot])

    def _check(self, index: int, pair: Pair) -> None:
        if not pair.context or not pair.continuation:
            empty = "continuation" if pair.context else "context"
            raise ConfigError(f"pair {index}: the {empty} has no tokens; a likelihood needs at least one")
        ids = (*pair.context, *pair.continuation)
        if min(ids) < 0 or max(ids) >= self.model.config.vocab_size:
            bad = next(token for token in ids if not 0 <= token < self.model.config.vocab_size)
            raise ConfigError(
                f"pair {index}: token {bad} is outside of the vocabulary of {self.model.config.vocab_size}; "
                "was the text encoded by another model's tokenizer?"
            )


@dataclass
class _Reading:
    """A node that is to be read, or read on."""

    node: prefix_tree.Node
    state: State[Any] | None
    read: int = 0


class _Work:
    """What is wanted of the sequences, and what was found."""

    def __init__(self, whole: list[np.ndarray], firsts: list[int], finished: Finished | None):
        self._whole = whole
        self._firsts = firsts
        """The place of each sequence after which the first target stands."""
        self._finished = finished
        counts = [len(ids) - 1 - first for ids, first in zip(whole, firsts, strict=True)]
        self.scores = [Scores(np.empty(count), np.empty(count, bool)) for count in counts]
        self._missing = counts

    def wanted(self, node: prefix_tree.Node, read: int, count: int) -> _Wanted:
        """The targets after some tokens of a node."""
        low, high = node.begin + read, node.begin + read + count
        parts, places = [NO_TARGETS], []
        for index in node.sequences:
            ids, origin = self._whole[index], self._firsts[index]
            first, end = max(low, origin), min(high, len(ids) - 1)
            if first < end:
                after = np.arange(first, end)
                parts.append(np.stack([after - low, ids[after + 1]], 1))
                places.append((index, slice(first - origin, end - origin)))
        targets = np.concatenate(parts)
        order = np.argsort(targets[:, 0], kind="stable")
        return _Wanted(np.ascontiguousarray(targets[order]), order, places)

    def fill(self, wanted: _Wanted, values: np.ndarray, likeliest: np.ndarray) -> None:
        """Put what was found where it belongs."""
        in_order = np.empty(len(values)), np.empty(len(values), bool)
        in_order[0][wanted.order], in_order[1][wanted.order] = values, likeliest
        taken = 0
        for index, place in wanted.places:
            count = place.stop - place.start
            scores = self.scores[index]
            scores.log_probabilities[place] = in_order[0][taken : taken + count]
            scores.likeliest[place] = in_order[1][taken : taken + count]
            taken += count
            self._missing[index] -= count
            if self._missing[index] == 0 and self._finished is not None:
                self._finished(index, scores)


@dataclass(frozen=True)
class _Wanted:
    """Targets after some tokens."""

    targets: np.ndarray
    """[n, 2], as a pool takes them."""

    order: np.ndarray
    """[n]: where each of them stands when they are put sequence by sequence."""

    places: list[tuple[int, slice]]
    """The sequences, and which of their scores these are."""


def _tokens_of(node: prefix_tree.Node) -> int:
    """Tokens of a node and of all below it."""
    total, nodes = 0, [node]
    while nodes:
        each = nodes.pop()
        total += len(each.tokens)
        nodes += each.children
    return total
