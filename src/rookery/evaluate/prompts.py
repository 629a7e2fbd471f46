"""The same questions under many prompts: does it matter where the question stands?

A recurrent model reads once and cannot look back: what it keeps of a document it chooses before it knows the
question, unless the question comes first. So each item is put in many orders of document and question, in
many formats, and what changes is measured.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rookery.errors import ConfigError, DataError
from rookery.evaluate.cache import RequestCache
from rookery.evaluate.first_token import FirstToken, choose_first_token
from rookery.evaluate.likelihood import Report
from rookery.evaluate.questions import RULES, Answered, Item, Prompt, answer
from rookery.files import atomic_write
from rookery.generate import ChatTemplate, LanguageModel

__all__ = ["FORMATS", "ORDERS", "Changed", "PromptResult", "PromptsResult", "compare_prompts", "write_csv"]

ORDERS: dict[str, str] = {
    "question after": "DQ",
    "question before": "QD",
    "both sides": "QDQ",
    "document twice": "DDQ",
    "document twice, question between": "DQDQ",
    "question before, document twice": "QDD",
}
"""How document (D) and question (Q) follow each other."""

_CHAT = ChatTemplate()


def _lines(parts: Sequence[tuple[str, str]]) -> Prompt:
    return Prompt("\n".join(text for _, text in parts) + "\n", before="")


def _labels(parts: Sequence[tuple[str, str]]) -> Prompt:
    names = {"D": "Text", "Q": "Question"}
    return Prompt("\n\n".join(f"{names[part]}: {text}" for part, text in parts) + "\n\nAnswer:")


def _instruction(parts: Sequence[tuple[str, str]]) -> Prompt:
    names = {"D": "Input", "Q": "Instruction"}
    return Prompt("\n\n".join(f"{names[part]}: {text}" for part, text in parts) + "\n\nResponse:")


def _chat(parts: Sequence[tuple[str, str]]) -> Prompt:
    message = "\n".join(text for _, text in parts)
    return Prompt(_CHAT.turn(message), stop=("\n", *_CHAT.stops))


FORMATS: dict[str, Callable[[Sequence[tuple[str, str]]], Prompt]] = {
    "lines": _lines,
    "labels": _labels,
    "instruction": _instruction,
    "chat": _chat,
}
"""How the parts are written: bare lines; ``Text: ... Question: ... Answer:``; the same with RWKV's
``Instruction``, ``Input`` and ``Response``; and the official chat format, ``User: ... Assistant:``."""


@dataclass(frozen=True)
class PromptResult:
    """What all items gave under one prompt."""

    format: str
    order: str
    answered: list[Answered]
    """In the order of the items, those skipped left out."""

    @property
    def score(self) -> float:
        """The mean of the items' scores: right choices by likelihood per byte, F1 of free answers."""
        return statistics.fmean(each.score for each in self.answered)

    @property
    def error(self) -> float:
        """The standard error of the score over items; NaN of a single one."""
        if len(self.answered) < 2:
            return math.nan
        return statistics.stdev(each.score for each in self.answered) / math.sqrt(len(self.answered))

    def accuracy(self, rule: str) -> float | None:
        """The share of right choices by a rule; None without choices."""
        asked = [each for each in self.answered if each.item.choices]
        return statistics.fmean(each.right(rule) for each in asked) if asked else None

    @property
    def exact_match(self) -> float | None:
        """The share of free answers that match exactly; None without any."""
        asked = [each for each in self.answered if each.written is not None]
        return statistics.fmean(each.right() for each in asked) if asked else None

    @property
    def f1(self) -> float | None:
        """The mean F1 of free answers; None without any."""
        asked = [each.f1 for each in self.answered if each.written is not None]
        return statistics.fmean(asked) if asked else None

    def row(self) -> dict[str, Any]:
        """One row of a table."""
        return {
            "format": self.format,
            "order": self.order,
            "score": self.score,
            "standard error": self.error,
            **{f"choices, {rule}": self.accuracy(rule) for rule in RULES},
            "exact match": self.exact_match,
            "F1": self.f1,
        }


@dataclass(frozen=True)
class Changed:
    """An item that one order got right and another one wrong, in the same format."""

    item: Item
    format: str
    right: str
    """The order of the right answer."""
    wrong: str
    said: str
    """The wrong answer."""


@dataclass(frozen=True)
class PromptsResult:
    """What a model made of the same items under many prompts."""

    prompts: list[PromptResult]
    skipped: list[dict[str, str]]
    """Items that could not be asked under every prompt, with reasons; they count nowhere."""
    first_token: FirstToken

    @property
    def best(self) -> PromptResult:
        """The prompt of the highest score; of several the first."""
        return max(self.prompts, key=lambda each: each.score)

    @property
    def worst(self) -> PromptResult:
        """The prompt of the lowest score."""
        return min(self.prompts, key=lambda each: each.score)

    @property
    def spread(self) -> float:
        """The highest score less the lowest."""
        return self.best.score - self.worst.score

    @property
    def items(self) -> int:
        """That were asked under every prompt."""
        return len(self.prompts[0].answered)

    def mean_of(self, field: str) -> dict[str, float]:
        """The mean score of each ``order`` over formats, or of each ``format`` over orders."""
        names = dict.fromkeys(getattr(each, field) for each in self.prompts)
        return {
            name: statistics.fmean(each.score for each in self.prompts if getattr(each, field) == name)
            for name in names
        }

    def changed(self) -> list[Changed]:
        """The items whose answer the order made right or wrong: of each item the first pair of orders."""
        found = []
        for number in range(self.items):
            for format_name in dict.fromkeys(each.format for each in self.prompts):
                own = {
                    each.order: each.answered[number] for each in self.prompts if each.format == format_name
                }
                right = next((order for order, each in own.items() if each.right("per byte")), None)
                wrong = next((order for order, each in own.items() if not each.right("per byte")), None)
                if right is not None and wrong is not None:
                    said = own[wrong].said("per byte")
                    found.append(Changed(own[wrong].item, format_name, right, wrong, said))
                    break
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "items": self.items,
            "first_token": self.first_token.id,
            "spread": self.spread,
            "best": {"format": self.best.format, "order": self.best.order, "score": self.best.score},
            "by_order": self.mean_of("order"),
            "by_format": self.mean_of("format"),
            "prompts": [
                each.row()
                | {"answers": {a.item.name: [a.said("per byte"), a.right("per byte")] for a in each.answered}}
                for each in self.prompts
            ],
            "changed": [
                {
                    "item": each.item.name,
                    "format": each.format,
                    "right": each.right,
                    "wrong": each.wrong,
                    "said": each.said,
                }
                for each in self.changed()
            ],
            "skipped": self.skipped,
        }


def compare_prompts(
    model: LanguageModel,
    items: Sequence[Item],
    *,
    formats: Sequence[str] = tuple(FORMATS),
    orders: Sequence[str] = tuple(ORDERS),
    first_token: str | int | None = None,
    max_tokens: int = 32,
    cache: RequestCache | None = None,
    report: Report | None = None,
) -> PromptsResult:
    """Ask the same items under every format and order.

    Args:
        model: with a tokenizer.
        items: with a context each; others are skipped, since nothing about them can be ordered.
        formats: names of ``FORMATS``.
        orders: names of ``ORDERS``.
        first_token: as for ``choose_first_token``.
        max_tokens: of a free answer.
        cache: answers of an earlier sitting.
        report: is told of tokens of choices, then of free answers.

    Raises:
        ConfigError: a format or an order is unknown, or there is none.
        DataError: no item could be asked under every prompt.
        TokenizerError: there is no tokenizer.
    """
    for kind, names, known in (("format", formats, FORMATS), ("order", orders, ORDERS)):
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise ConfigError(
                f"there is no {kind} {unknown[0] if unknown else ''!r}; there are {', '.join(known)}"
            )
    first = choose_first_token(model, first_token)
    skipped = [
        {"item": item.name, "reason": "it has no context that a question could stand before or after"}
        for item in items
        if not item.context
    ]
    there = [item for item in items if item.context]
    kinds = [(format_name, order) for format_name in formats for order in orders]
    asked = [(item, put(item, *kind)) for kind in kinds for item in there]
    found = answer(model, asked, first_token=first, max_tokens=max_tokens, cache=cache, report=report)
    by_kind = [found[start : start + len(there)] for start in range(0, len(found), len(there) or 1)]
    reasons = {number: each for row in by_kind for number, each in enumerate(row) if isinstance(each, str)}
    skipped += [{"item": there[number].name, "reason": reason} for number, reason in sorted(reasons.items())]
    if len(reasons) == len(there):
        raise DataError(
            f"no item could be asked: {skipped[0]['item']}: {skipped[0]['reason']}"
            if skipped
            else "there is no item"
        )
    results = [
        PromptResult(
            *kind,
            [each for number, each in enumerate(row) if number not in reasons and isinstance(each, Answered)],
        )
        for kind, row in zip(kinds, by_kind, strict=True)
    ]
    return PromptsResult(results, skipped, first)


def put(item: Item, format_name: str, order: str) -> Prompt:
    """An item as a prompt; names of ``FORMATS`` and ``ORDERS``."""
    text = {"D": item.context.strip(), "Q": item.question.strip()}
    return FORMATS[format_name]([(part, text[part]) for part in ORDERS[order]])


def write_csv(path: str | Path, result: PromptsResult) -> None:
    """One line for each prompt.

    Raises:
        DataError: the file cannot be written.
    """
    rows = [each.row() for each in result.prompts]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    try:
        with atomic_write(path) as file:
            file.write(text.getvalue().encode())
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
