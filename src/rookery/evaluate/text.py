"""How well models predict a text: loss, bits per byte, perplexity by position.

    results = [measure_text(RookeryReader(model), documents), measure_text(other, documents)]

Bits per byte compare models of different tokenizers; losses and perplexities are of a model's own tokens.
A recurrent model reads each document to its end, the state carried; an attention model slides a window over
it.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np

from rookery.errors import ConfigError, DataError
from rookery.evaluate.cache import RequestCache
from rookery.evaluate.first_token import FirstToken, choose_first_token, tokenizer_of
from rookery.evaluate.likelihood import Finished, LikelihoodEngine, Pair, Report, Scores
from rookery.evaluate.setting import model_setting
from rookery.generate import LanguageModel
from rookery.train.documents import Document

__all__ = ["Bucket", "RookeryReader", "TextReader", "TextResult", "measure_text", "windows"]

# Positions of a document up to which the first row of the table goes; each further row is twice as long.
_FIRST_BUCKET = 64


class TextReader(Protocol):
    """What scores tokens: a model of this package, or one of transformers."""

    @property
    def name(self) -> str:
        """For the table."""
        ...

    @property
    def first_token(self) -> FirstToken:
        """What stands before the first token of a document."""
        ...

    @property
    def limit(self) -> int | None:
        """Most tokens that it can have before it at once; None where there is no limit."""
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, none added."""
        ...

    def score(
        self, pairs: Sequence[Pair], *, report: Report | None = None, finished: Finished | None = None
    ) -> list[Scores]:
        """As ``LikelihoodEngine.score``."""
        ...

    def setting(self) -> dict[str, Any]:
        """What scores depend on, plain values for JSON."""
        ...


class RookeryReader:
    """A model of this package.

    Args:
        model: with a tokenizer.
        name: for the table.
        first_token: as for ``choose_first_token``.

    Raises:
        TokenizerError: the model has no tokenizer.
    """

    limit: int | None = None

    def __init__(self, model: LanguageModel, *, name: str = "", first_token: str | int | None = None):
        self.name = name
        self.model = model
        self.first_token = choose_first_token(model, first_token)
        self.engine = LikelihoodEngine(model)
        self.encode = tokenizer_of(model).encode
        self.score = self.engine.score

    def setting(self) -> dict[str, Any]:
        """The weights, what runs them, the tokenizer and the first token."""
        return model_setting(self.model, self.first_token)


@dataclass(frozen=True)
class Bucket:
    """Predicted tokens whose place in their document is ``begin`` to ``end`` - 1."""

    begin: int
    end: int
    tokens: int
    nats: float

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return _exp(self.loss)


@dataclass(frozen=True)
class TextResult:
    """How well one model predicted a text."""

    name: str
    documents: int
    tokens: int
    bytes: int
    nats: float
    buckets: list[Bucket]
    setting: dict[str, Any]
    seconds: float
    skipped: list[dict[str, str]] = field(default_factory=list)
    """Documents that were not scored, with reasons; they are in none of the figures."""

    @property
    def loss(self) -> float:
        """Nats per token of the model's own tokenizer."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return _exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text in UTF-8, whatever the tokenizer."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **{name: value for name, value in vars(self).items() if name != "buckets"},
            "loss": self.loss,
            "bits_per_byte": self.bits_per_byte,
            "perplexity": self.perplexity,
            "by_position": [
                vars(each) | {"loss": each.loss, "perplexity": each.perplexity} for each in self.buckets
            ],
        }


def measure_text(
    reader: TextReader,
    documents: Sequence[Document],
    *,
    window: int | None = None,
    stride: int | None = None,
    cache: RequestCache | None = None,
    report: Report | None = None,
) -> TextResult:
    """Predict every token of every document.

    Args:
        reader: the model.
        documents: each begins anew, after the first token.
        window: most tokens that are there to predict from. By default all of the document, or as many as the
            model can have.
        stride: by how many tokens windows move on; the default is half a window, so that each token but those
            of the beginning is predicted from half a window or more.
        cache: documents of an earlier sitting.
        report: is told of tokens.

    Raises:
        ConfigError: the window or the stride is out of range.
        DataError: no document could be scored.
    """
    if window is None:
        window = reader.limit
    elif reader.limit is not None and window > reader.limit:
        raise ConfigError(
            f"{reader.name} has {reader.limit} tokens before it at most, and not a window of {window}"
        )
    started = time.perf_counter()
    ids = [reader.encode(document.text) for document in documents]
    total = sum(map(len, ids))
    cache = RequestCache(None, {}) if cache is None else cache
    scored: list[tuple[Document, list[Bucket]]] = []
    skipped: list[dict[str, str]] = []
    read = 0
    for document, tokens in zip(documents, ids, strict=True):

        def advance(done: int, of: int, before: int = read, count: int = len(tokens)) -> None:
            if report is not None:
                report(before + done * count // max(of, 1), total)

        request = ["text", hashlib.sha256(document.text.encode()).hexdigest(), window, stride]
        found = cache.get(request)
        try:
            if found is None:
                values = _predict(reader, document, tokens, window, stride, advance)
                found = [vars(bucket) for bucket in _buckets(values)]
                cache.put(request, found)
                cache.flush()
            scored.append((document, [Bucket(**bucket) for bucket in found]))
        except DataError as error:
            skipped.append({"document": document.name, "reason": str(error)})
        read += len(tokens)
        advance(0, 1, read, 0)
    if not scored:
        reason = skipped[0]["reason"] if skipped else "there is none"
        raise DataError(f"{reader.name}: no document could be scored: {reason}")
    buckets = _together([buckets for _, buckets in scored])
    return TextResult(
        name=reader.name,
        documents=len(scored),
        tokens=sum(bucket.tokens for bucket in buckets),
        bytes=sum(len(document.text.encode()) for document, _ in scored),
        nats=math.fsum(bucket.nats for bucket in buckets),
        buckets=buckets,
        setting=reader.setting()
        | {"window": window, "stride": None if window is None else stride or max(window // 2, 1)},
        seconds=time.perf_counter() - started,
        skipped=skipped,
    )


def windows(tokens: Sequence[int], first: int, window: int | None, stride: int | None = None) -> list[Pair]:
    """A text as contexts and continuations that follow each other and cover all of it.

    Args:
        tokens: at least one.
        first: the token before them.
        window: most tokens that are read to predict one, the first token among them; None for all.
        stride: tokens that each window but the first adds; the default is half a window.

    Raises:
        ConfigError: the window is not positive, or the stride is not 1 to the window.
    """
    whole = (first, *tokens)
    if window is None or len(tokens) <= window:
        return [Pair(whole[:1], whole[1:])]
    stride = max(window // 2, 1) if stride is None else stride
    if window < 1 or not 1 <= stride <= window:
        raise ConfigError(f"a window of {window} tokens cannot move on by {stride}")
    pairs = [Pair(whole[:1], whole[1 : window + 1])]
    place = window + 1  # the next to be predicted
    while place < len(whole):
        end = min(place + stride, len(whole))
        begin = end - 1 - window  # reads [begin, end - 1), and predicts up to end - 1
        pairs.append(Pair(whole[begin:place], whole[place:end]))
        place = end
    return pairs


def _predict(
    reader: TextReader,
    document: Document,
    tokens: Sequence[int],
    window: int | None,
    stride: int | None,
    report: Report,
) -> np.ndarray:
    if not tokens:
        raise DataError(f"{document.name} has no tokens")
    pairs = windows(tokens, reader.first_token.id, window, stride)
    return np.concatenate([scores.log_probabilities for scores in reader.score(pairs, report=report)])


def _buckets(values: np.ndarray) -> list[Bucket]:
    """Of one document."""
    buckets, begin, end = [], 0, _FIRST_BUCKET
    while begin < len(values):
        inside = values[begin:end]
        buckets.append(Bucket(begin, begin + len(inside), len(inside), -float(inside.sum())))
        begin, end = end, 2 * end
    return buckets


def _together(documents: Sequence[list[Bucket]]) -> list[Bucket]:
    """Of many; those of like number begin at the same place."""
    columns = [[each for each in column if each is not None] for column in zip_longest(*documents)]
    return [
        Bucket(
            column[0].begin,
            max(each.end for each in column),
            sum(each.tokens for each in column),
            math.fsum(each.nats for each in column),
        )
        for column in columns
    ]


def _exp(loss: float) -> float:
    # Beyond it there is no number, and a model of any use is far from it.
    return math.exp(loss) if loss < 700 else math.inf
