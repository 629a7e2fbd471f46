"""Questions with choices or free answers, and texts with a blank, from JSON lines.

    {"context": "Rooks breed in colonies.", "question": "Where do rooks breed?", "answer": "in colonies"}
    {"context": "...", "question": "Which bird is it?", "choices": ["a rook", "a crow"], "answer": 0}
    {"question": "The capital of France is ___.", "choices": ["Paris", "Rome"], "answer": "Paris"}

``context`` may be left out, and ``id`` given. ``answer`` is the number of the right choice or its text;
without choices a text, or several that are all right. Three or more underscores in the question are a blank.

Choices are scored by their likelihood: the sum, and the sum by token and by byte, which favour short ones
less. Free answers are what the model writes, compared as SQuAD does: exact match, and F1 of words.
"""

from __future__ import annotations

import re
import string
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rookery.errors import DataError, TokenizerError
from rookery.evaluate.cache import RequestCache
from rookery.evaluate.first_token import FirstToken, choose_first_token, tokenizer_of
from rookery.evaluate.json_lines import Line, read_lines
from rookery.evaluate.likelihood import LikelihoodEngine, Pair, Report, Scores
from rookery.evaluate.writing import write
from rookery.generate import LanguageModel

__all__ = [
    "RULES",
    "Answered",
    "Item",
    "Prompt",
    "QuestionsResult",
    "answer",
    "ask",
    "exact_match",
    "f1",
    "plain_prompt",
    "read_items",
]

RULES = ("sum", "per token", "per byte")
"""How the choice is taken: by log-likelihood, or by log-likelihood per token or per byte of the choice."""

_BLANK = re.compile(r"_{3,}")
_MAX_TOKENS = 32


@dataclass(frozen=True)
class Item:
    """One question."""

    name: str
    """Its ``id``, or ``FILE:LINE``."""
    context: str
    question: str
    choices: tuple[str, ...]
    """Empty where the answer is free."""
    answers: tuple[str, ...]
    """Of which any is right."""

    @property
    def blank(self) -> tuple[str, str] | None:
        """What stands before and after the blank of the question, if it has one."""
        parts = _BLANK.split(self.question, maxsplit=1)
        return (parts[0], parts[1]) if len(parts) == 2 else None


@dataclass(frozen=True)
class Prompt:
    """What the model reads, and how an answer follows it."""

    text: str
    before: str = " "
    """Between the prompt and an answer."""
    after: str = ""
    """What follows an answer and is scored with it: the text after a blank."""
    stop: tuple[str, ...] = ("\n",)
    """Where a free answer ends."""


def plain_prompt(item: Item) -> Prompt:
    """Context, question and ``Answer:``, each on a line; a text with a blank up to the blank."""
    start = f"{item.context}\n" if item.context else ""
    if item.blank is not None:
        before, after = item.blank
        stop = ("\n", after[:16]) if after.strip() else ("\n",)
        return Prompt(
            start + before.rstrip(), " " if before[-1:] in (" ", "") and before else "", after, stop
        )
    return Prompt(f"{start}Question: {item.question}\nAnswer:")


@dataclass(frozen=True)
class Answered:
    """What the model made of one item."""

    item: Item
    log_likelihoods: tuple[float, ...] = ()
    """Of each choice."""
    taken: dict[str, int] = field(default_factory=dict)
    """By rule, the number of the choice."""
    written: str | None = None
    """The free answer."""

    def right(self, rule: str = "sum") -> bool:
        """Whether the choice taken by a rule is right; of a free answer, whether it matches exactly."""
        if self.written is not None:
            return exact_match(self.written, self.item.answers)
        return self.item.choices[self.taken[rule]] in self.item.answers

    @property
    def score(self) -> float:
        """From 0 to 1: whether the choice per byte is right, or the F1 of a free answer."""
        return float(self.right("per byte")) if self.written is None else self.f1

    @property
    def f1(self) -> float:
        """Of a free answer: the best F1 with any right one."""
        return 0.0 if self.written is None else f1(self.written, self.item.answers)

    def said(self, rule: str = "sum") -> str:
        """The answer in words."""
        return self.item.choices[self.taken[rule]] if self.written is None else self.written


@dataclass(frozen=True)
class QuestionsResult:
    """What a model made of a file."""

    answered: list[Answered]
    skipped: list[dict[str, str]]
    """Items that could not be asked, with reasons; they count nowhere."""
    first_token: FirstToken
    seconds: float

    def accuracy(self, rule: str = "sum") -> float | None:
        """The share of right choices by a rule; None where no item has choices."""
        asked = [each for each in self.answered if each.item.choices]
        return sum(each.right(rule) for each in asked) / len(asked) if asked else None

    @property
    def exact_match(self) -> float | None:
        """The share of free answers that match exactly; None where there are none."""
        asked = [each for each in self.answered if each.written is not None]
        return sum(each.right() for each in asked) / len(asked) if asked else None

    @property
    def f1(self) -> float | None:
        """The mean F1 of free answers."""
        asked = [each for each in self.answered if each.written is not None]
        return sum(each.f1 for each in asked) / len(asked) if asked else None

    @property
    def score(self) -> float:
        """The mean of all items' scores."""
        return sum(each.score for each in self.answered) / len(self.answered)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "items": len(self.answered),
            "with_choices": sum(bool(each.item.choices) for each in self.answered),
            "accuracy": {rule: self.accuracy(rule) for rule in RULES},
            "exact_match": self.exact_match,
            "f1": self.f1,
            "score": self.score,
            "first_token": self.first_token.id,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "answers": [
                {
                    "item": each.item.name,
                    "log_likelihoods": each.log_likelihoods,
                    "taken": each.taken,
                    "written": each.written,
                    "right": {rule: each.right(rule) for rule in RULES} if each.taken else each.right(),
                }
                for each in self.answered
            ],
        }


def read_items(path: str | Path) -> list[Item]:
    """The items of a file.

    Raises:
        DataError: a line has missing fields, or fields of other types, or an answer that is no choice.
    """
    return [_item(line) for line in read_lines(path)]


def ask(
    model: LanguageModel,
    items: Sequence[Item],
    *,
    prompt: Callable[[Item], Prompt] = plain_prompt,
    first_token: str | int | None = None,
    max_tokens: int = _MAX_TOKENS,
    cache: RequestCache | None = None,
    report: Report | None = None,
) -> QuestionsResult:
    """Have a model answer.

    The first token is read before every prompt. An item that cannot be asked, such as one with a choice that
    has no tokens, is left out and recorded.

    Args:
        model: with a tokenizer.
        items: questions.
        prompt: how an item is put.
        first_token: as for ``choose_first_token``.
        max_tokens: of a free answer.
        cache: answers of an earlier sitting.
        report: is told of tokens of choices, then of free answers.

    Raises:
        TokenizerError: there is no tokenizer.
        DataError: no item could be asked.
    """
    started = time.perf_counter()
    first = choose_first_token(model, first_token)
    found = answer(
        model,
        [(item, prompt(item)) for item in items],
        first_token=first,
        max_tokens=max_tokens,
        cache=cache,
        report=report,
    )
    answered = [each for each in found if isinstance(each, Answered)]
    skipped = [
        {"item": item.name, "reason": reason}
        for item, reason in zip(items, found, strict=True)
        if isinstance(reason, str)
    ]
    if not answered:
        reason = f"{skipped[0]['item']}: {skipped[0]['reason']}" if skipped else "there is none"
        raise DataError(f"no item could be asked: {reason}")
    return QuestionsResult(answered, skipped, first, time.perf_counter() - started)


def answer(
    model: LanguageModel,
    asked: Sequence[tuple[Item, Prompt]],
    *,
    first_token: FirstToken,
    max_tokens: int = _MAX_TOKENS,
    cache: RequestCache | None = None,
    report: Report | None = None,
) -> list[Answered | str]:
    """Answers to prompts, read together: what they begin with alike is read once.

    Returns:
        Of each prompt the answer, or the reason why there is none.

    Raises:
        TokenizerError: there is no tokenizer.
    """
    tokenizer_of(model)
    cache = RequestCache(None, {}) if cache is None else cache
    found: list[Answered | str] = [""] * len(asked)
    choosing: list[tuple[int, list[Pair]]] = []
    writing: list[int] = []
    for index, (item, put) in enumerate(asked):
        try:
            pairs = _pairs(model, first_token, item, put)
        except (DataError, TokenizerError) as error:
            found[index] = str(error)
            continue
        if pairs:
            choosing.append((index, pairs))
        else:
            writing.append(index)
    totals = _score(model, [pair for _, pairs in choosing for pair in pairs], cache, report)
    taken = 0
    for index, pairs in choosing:
        found[index] = _choose(*asked[index], pairs, totals[taken : taken + len(pairs)])
        taken += len(pairs)
    texts = _write(model, first_token, [asked[index][1] for index in writing], max_tokens, cache, report)
    for index, text in zip(writing, texts, strict=True):
        found[index] = Answered(asked[index][0], written=text)
    return found


def _item(line: Line) -> Item:
    question = line.require("question", str)
    context = line.fields.get("context") or ""
    if not isinstance(context, str):
        line.require("context", str)
    if not question.strip():
        raise DataError(f"{line.where}: the question is empty")
    if "context" in line.fields and not context.strip():
        raise DataError(f"{line.where}: the context is empty; leave the field out where there is none")
    choices: tuple[str, ...] = ()
    answer = line.require("answer", (str, int, list))
    if line.fields.get("choices") is not None:
        given = line.require("choices", list)
        if len(given) < 2 or not all(isinstance(each, str) for each in given):
            raise DataError(f"{line.where}: the field 'choices' must be two or more texts")
        choices = tuple(given)
        if isinstance(answer, int):
            if not 0 <= answer < len(choices):
                last = len(choices) - 1
                raise DataError(f"{line.where}: the answer {answer} is no number of a choice, 0 to {last}")
            answer = choices[answer]
    answers = tuple(answer) if isinstance(answer, list) else (answer,)
    if not answers or not all(isinstance(each, str) and each.strip() for each in answers):
        raise DataError(f"{line.where}: the field 'answer' must be text, or a list of texts")
    if choices and not set(answers) <= set(choices):
        raise DataError(f"{line.where}: the answer {answers[0]!r} is not one of the choices")
    name = line.fields.get("id")
    return Item(
        str(name) if name is not None else f"{line.path.name}:{line.number}",
        context,
        question,
        choices,
        answers,
    )


def _pairs(model: LanguageModel, first: FirstToken, item: Item, put: Prompt) -> list[Pair]:
    """A pair for each choice; none where the answer is free."""
    encode = tokenizer_of(model).encode
    # What follows a blank tells choices apart even where nothing stands before it.
    if not put.text.strip() and not (item.choices and put.after.strip()):
        raise DataError("the prompt is empty: there is nothing before the answer")
    context = encode(put.text)
    pairs = []
    for number, choice in enumerate(item.choices):
        # Encoded together, so that the border is where it would be in running text.
        whole = encode(put.text + put.before + choice + put.after)
        if not encode(choice):
            raise DataError(f"choice {number} ({choice!r}) has no tokens")
        shared = next(
            (i for i, (a, b) in enumerate(zip(context, whole, strict=False)) if a != b), len(context)
        )
        if not whole[shared:]:
            raise DataError(f"choice {number} ({choice!r}) has no tokens after the prompt")
        pairs.append(Pair((first.id, *whole[:shared]), tuple(whole[shared:])))
    # Tokens at the border may differ by choice; every choice is scored from the same place.
    shared = min((len(pair.context) for pair in pairs), default=0)
    return [Pair(pair.context[:shared], (*pair.context[shared:], *pair.continuation)) for pair in pairs]


def _score(
    model: LanguageModel, pairs: Sequence[Pair], cache: RequestCache, report: Report | None
) -> list[float]:
    requests = [["choice", list(pair.context), list(pair.continuation)] for pair in pairs]
    found: list[Any] = [cache.get(request) for request in requests]
    new = [index for index, total in enumerate(found) if total is None]

    def finish(number: int, scores: Scores) -> None:
        found[new[number]] = scores.total
        cache.put(requests[new[number]], scores.total)

    def flush(done: int, total: int) -> None:
        cache.flush()
        if report is not None:
            report(done, total)

    LikelihoodEngine(model).score([pairs[index] for index in new], report=flush, finished=finish)
    return found


def _write(
    model: LanguageModel,
    first: FirstToken,
    prompts: Sequence[Prompt],
    max_tokens: int,
    cache: RequestCache,
    report: Report | None,
) -> list[str]:
    encode = tokenizer_of(model).encode
    ids = [[first.id, *encode(prompt.text)] for prompt in prompts]
    requests = [["answer", each, prompt.stop, max_tokens] for each, prompt in zip(ids, prompts, strict=True)]
    found: list[Any] = [cache.get(request) for request in requests]
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, text in enumerate(found):
        if text is None:
            groups.setdefault(prompts[index].stop, []).append(index)
    done, total = 0, sum(map(len, groups.values()))
    for stop, members in groups.items():

        def finish(number: int, text: str, members: list[int] = members) -> None:
            nonlocal done
            done += 1
            found[members[number]] = text
            cache.put(requests[members[number]], text)
            cache.flush()
            if report is not None:
                report(done, total)

        write(model, [ids[index] for index in members], max_tokens=max_tokens, stop=stop, finished=finish)
    return [text.strip() for text in found]


def _choose(item: Item, put: Prompt, pairs: Sequence[Pair], totals: Sequence[float]) -> Answered:
    sizes = {
        "sum": [1] * len(pairs),
        "per token": [len(pair.continuation) for pair in pairs],
        "per byte": [len((choice + put.after).encode()) for choice in item.choices],
    }
    taken = {}
    for rule, counts in sizes.items():
        by_rule = [total / count for total, count in zip(totals, counts, strict=True)]
        taken[rule] = max(range(len(by_rule)), key=by_rule.__getitem__)
    return Answered(item, tuple(totals), taken)


def exact_match(written: str, answers: Sequence[str]) -> bool:
    """Whether a text is one of the answers, but for case, punctuation, articles and spaces (SQuAD)."""
    return any(_words(written) == _words(answer) for answer in answers)


def f1(written: str, answers: Sequence[str]) -> float:
    """The best F1 of a text's words with those of an answer, normalised as for ``exact_match`` (SQuAD)."""
    return max(_f1(_words(written), _words(answer)) for answer in answers)


def _f1(written: list[str], answer: list[str]) -> float:
    if not written or not answer:
        return float(written == answer)
    shared = sum((Counter(written) & Counter(answer)).values())
    return 2 * shared / (len(written) + len(answer))


def _words(text: str) -> list[str]:
    kept = "".join(char for char in text.lower() if char not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]
