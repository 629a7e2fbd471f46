"""Rows of tokens from documents, and the order in which training sees them.

Documents lie one after the other in one long array. Where there are several, each begins with the end of text
of the tokenizer, if it has one, and the first token of each is marked in ``starts``: there the state is new.
Rows are windows of that array, so a row may hold the end of one document and the beginning of the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from rookery.errors import DataError
from rookery.tokenizers import Tokenizer
from rookery.train.documents import Document

__all__ = ["IGNORED", "Rows", "TokenStream", "TrainingOrder", "bytes_of_tokens", "pack"]

# A target that is not to be predicted; torch's cross entropy skips it.
IGNORED = -100


class Rows(NamedTuple):
    """Some rows of a token stream."""

    inputs: np.ndarray
    """[B, T] int64"""

    targets: np.ndarray
    """[B, T] int64: the token that follows each input, or ``IGNORED``."""

    starts: np.ndarray | None
    """[B, T] bool: the first tokens of documents; None where the stream is one text."""


@dataclass(frozen=True)
class TokenStream:
    """Documents, tokenized, one after the other."""

    tokens: np.ndarray
    """[n], an unsigned integer type"""

    starts: np.ndarray | None
    """[n] bool: the first token of each document; None for one text."""

    separated: bool
    """Documents begin with the end of text, which is learnt; else their first tokens are never predicted."""

    def rows(self, positions: Sequence[int] | np.ndarray, length: int) -> Rows:
        """Windows that begin at these positions; what goes beyond the end of the stream is not predicted.

        Args:
            positions: [B], of the first input of each row.
            length: T
        """
        index = np.asarray(positions, dtype=np.int64)[:, None] + np.arange(length + 1)
        inside = index < len(self.tokens)
        index = np.minimum(index, len(self.tokens) - 1)
        window = self.tokens[index].astype(np.int64)
        targets = np.where(inside[:, 1:], window[:, 1:], IGNORED)
        if self.starts is None:
            return Rows(window[:, :-1], targets, None)
        starts = self.starts[index]
        if not self.separated:
            targets[starts[:, 1:]] = IGNORED
        return Rows(window[:, :-1], targets, starts[:, :-1])

    def windows(self, length: int, *, limit: int = 0) -> np.ndarray:
        """Positions of windows that together predict every token but the first, each once.

        Args:
            length: T of the windows.
            limit: most tokens to predict, by leaving out windows evenly; 0 for all.
        """
        positions = np.arange(0, len(self.tokens) - 1, length)
        most = max(limit // length, 1) if limit else len(positions)
        if len(positions) <= most:
            return positions
        return positions[np.linspace(0, len(positions) - 1, most).round().astype(np.int64)]

    def documents(self) -> list[np.ndarray]:
        """The tokens of each document, end of text first where there is one."""
        if self.starts is None:
            return [self.tokens]
        return np.split(self.tokens, np.flatnonzero(self.starts)[1:])

    def fingerprint(self) -> str:
        """SHA-256 of tokens and boundaries, to know whether data is still what it was."""
        digest = hashlib.sha256(self.tokens.tobytes())
        if self.starts is not None:
            digest.update(self.starts.tobytes())
        return digest.hexdigest()


def pack(documents: Sequence[Document], tokenizer: Tokenizer) -> TokenStream:
    """Tokenize documents into one stream.

    Raises:
        TokenizerError: a text has characters that the tokenizer does not know.
    """
    encoded = [tokenizer.encode_array(document.text) for document in documents]
    if len(encoded) == 1:
        return TokenStream(encoded[0], None, separated=False)
    separator = tokenizer.end_of_text
    if separator is not None:
        first = np.array([separator], dtype=tokenizer.array_dtype)
        encoded = [part for tokens in encoded for part in (first, tokens)]
    tokens = np.concatenate(encoded)
    lengths = [len(tokens) for tokens in encoded]
    if separator is not None:
        lengths = [1 + length for length in lengths[1::2]]
    starts = np.zeros(len(tokens), dtype=bool)
    starts[np.cumsum([0, *lengths[:-1]])] = True
    return TokenStream(tokens, starts, separated=separator is not None)


class TrainingOrder:
    """Which rows each step sees: a function of the seed and of the step, and of nothing else.

    An epoch is the stream cut into windows of T tokens, beginning at a random offset, in random order; both
    are drawn anew for each epoch from (seed, epoch). Sample i is window i mod n of epoch i // n, and step s
    has the samples s B .. s B + B - 1. So a resumed run goes on with the rows it would have seen, and any
    number of micro-batches sees the same rows.

    Args:
        stream: what to learn from.
        context: T
        batch: B
        seed: of the order.
        name: of the data, for the error.

    Raises:
        DataError: there are not more tokens than the context.
    """

    def __init__(self, stream: TokenStream, *, context: int, batch: int, seed: int, name: str = "data"):
        n = len(stream.tokens)
        if n <= context:
            raise DataError(
                f"{name}: {n} tokens to train on are too few for a context of {context}, which needs "
                f"at least {context + 1}; give more data or a smaller context"
            )
        self.stream = stream
        self.context = context
        self.batch = batch
        # One window fewer than fits where there are many, so that the offset has T places or more.
        self.windows_per_epoch = max((n - context) // context, 1)
        slack = n - 1 - self.windows_per_epoch * context

        @lru_cache(maxsize=2)
        def epoch_positions(epoch: int) -> np.ndarray:
            generator = np.random.default_rng([seed, epoch])
            offset = generator.integers(slack + 1)
            return offset + generator.permutation(self.windows_per_epoch) * context

        self._epoch_positions = epoch_positions

    def positions(self, step: int) -> np.ndarray:
        """Where the rows of a step begin, [B]."""
        samples = np.arange(step * self.batch, (step + 1) * self.batch)
        epochs, windows = np.divmod(samples, self.windows_per_epoch)
        pairs = zip(epochs.tolist(), windows.tolist(), strict=True)
        return np.array([self._epoch_positions(epoch)[window] for epoch, window in pairs])

    def rows(self, step: int) -> Rows:
        """The rows of a step (counted from 0), [B, T]."""
        return self.stream.rows(self.positions(step), self.context)


def bytes_of_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """How many bytes each id stands for, [N] int64."""
    return np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)])
