"""Questions from files: choices by likelihood, free answers, blanks, and what is wrong in a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rookery.checkpoints import Checkpoint
from rookery.config import sized
from rookery.errors import DataError, TokenizerError
from rookery.evaluate import questions
from rookery.evaluate.cache import RequestCache
from rookery.evaluate.pool import log_softmax
from rookery.evaluate.questions import Item, ask, exact_match, f1, plain_prompt, read_items
from rookery.generate import LanguageModel
from rookery.generate.backend import open_backend
from rookery.models import to_tensors
from rookery.tokenizers import ByteTokenizer, CharTokenizer

ROWS = [
    {
        "context": "Rooks breed in colonies.",
        "question": "Where do rooks breed?",
        "answer": ["in colonies", "colonies"],
    },
    {
        "context": "It is black.",
        "question": "Which bird?",
        "choices": ["a rook", "the old crow"],
        "answer": 0,
    },
    {
        "id": "paris",
        "question": "The capital of France is ___.",
        "choices": ["Paris", "Rome"],
        "answer": "Paris",
    },
    {"question": "Two and two are ____", "answer": "four"},
]


def write_rows(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def model(random_model) -> LanguageModel:
    config = sized("7", vocab_size=256, width=64, num_layers=2)
    checkpoint = Checkpoint(config=config, tensors=to_tensors(random_model(config)))
    return LanguageModel(open_backend(checkpoint, name="native", threads=1), ByteTokenizer())


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    return read_items(write_rows(tmp_path / "questions.jsonl", ROWS))


def log_likelihood(model: LanguageModel, context: str, continuation: str) -> float:
    ids, after = [0, *context.encode()], list(continuation.encode())
    logits, _ = model([*ids, *after[:-1]])
    return log_softmax(logits)[np.arange(len(ids) - 1, len(ids) - 1 + len(after)), after].sum()


def test_items_of_a_file(items: list[Item]):
    assert [item.name for item in items] == [
        "questions.jsonl:1",
        "questions.jsonl:2",
        "paris",
        "questions.jsonl:4",
    ]
    assert items[1].answers == ("a rook",)
    assert items[2].blank == ("The capital of France is ", ".")
    assert plain_prompt(items[0]).text == "Rooks breed in colonies.\nQuestion: Where do rooks breed?\nAnswer:"


def test_a_blank_is_where_the_answer_goes(items: list[Item]):
    put = plain_prompt(items[2])
    assert put.text + put.before + "Paris" + put.after == "The capital of France is Paris."
    put = plain_prompt(Item("", "A text.", "___ is it.", ("a", "b"), ("a",)))
    assert put.text + put.before + "She" + put.after == "A text.\nShe is it."
    put = plain_prompt(Item("", "", "Over(___)", ("a", "b"), ("a",)))
    assert put.text + put.before + "x" + put.after == "Over(x)"


def test_choices_are_taken_by_likelihood(model: LanguageModel, items: list[Item]):
    result = ask(model, items)
    _, bird, paris, _ = result.answered
    wanted = [log_likelihood(model, plain_prompt(items[1]).text, f" {each}") for each in items[1].choices]
    np.testing.assert_allclose(bird.log_likelihoods, wanted, atol=1e-4)
    assert bird.taken["sum"] == int(np.argmax(wanted))
    assert bird.taken["per token"] == int(np.argmax([wanted[0] / 7, wanted[1] / 13]))
    assert bird.taken["per byte"] == int(np.argmax([wanted[0] / 6, wanted[1] / 12]))
    wanted = [log_likelihood(model, "The capital of France is", f" {each}.") for each in items[2].choices]
    np.testing.assert_allclose(paris.log_likelihoods, wanted, atol=1e-4)
    right = [each.right("sum") for each in (bird, paris)]
    assert result.accuracy("sum") == sum(right) / 2
    assert result.to_dict()["accuracy"]["sum"] == sum(right) / 2
    assert result.first_token.id == 0


def test_free_answers_are_written(model: LanguageModel, items: list[Item]):
    result = ask(model, items, max_tokens=6)
    for answered in (result.answered[0], result.answered[3]):
        prompt = [0, *plain_prompt(answered.item).text.encode()]
        text = model.generate(prompt, temperature=0, max_tokens=6, stop=["\n"])
        assert answered.written == text.strip()
    assert result.exact_match == 0
    assert result.accuracy("sum") is not None
    only = ask(model, items[1:3])
    assert only.exact_match is only.f1 is None
    assert ask(model, items[:1]).accuracy() is None


def test_progress_is_of_choices_then_of_answers(model: LanguageModel, items: list[Item]):
    reports: list[tuple[int, int]] = []
    ask(model, items, max_tokens=3, report=lambda *each: reports.append(each))
    assert reports[-2:] == [(1, 2), (2, 2)]
    assert reports[-3][0] == reports[-3][1] > 2


def test_answers_of_an_earlier_sitting(model: LanguageModel, items: list[Item], tmp_path: Path):
    with RequestCache(tmp_path / "requests.jsonl", {}) as cache:
        first = ask(model, items, cache=cache, max_tokens=4)
    with RequestCache(tmp_path / "requests.jsonl", {}) as cache:
        again = ask(model, items, cache=cache, max_tokens=4)
        assert cache.found == 6
    assert again.answered == first.answered


@pytest.mark.parametrize(
    ("written", "answers", "match", "score"),
    [
        ("The Rook!", ("rook",), True, 1.0),
        ("a rook, an owl", ("the owl", "rook owl"), True, 1.0),
        ("two black rooks", ("black rooks",), False, 0.8),
        ("black black", ("black rooks",), False, 0.5),
        ("", ("rook",), False, 0.0),
        ("the", ("a",), True, 1.0),
        ("crow", ("rook", "owl"), False, 0.0),
    ],
)
def test_answers_are_compared_as_squad_does(
    written: str, answers: tuple[str, ...], match: bool, score: float
):
    assert exact_match(written, answers) == match
    assert f1(written, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"answer": "a"}, "the field 'question' is missing; it has 'answer'"),
        ({"question": "a?"}, "the field 'answer' is missing"),
        ({"question": 5, "answer": "a"}, "'question' must be text, not a whole number"),
        ({"question": " ", "answer": "a"}, "the question is empty"),
        ({"question": "a?", "context": "", "answer": "a"}, "the context is empty"),
        ({"question": "a?", "context": " \n", "answer": "a"}, "the context is empty"),
        ({"question": "a?", "context": ["x"], "answer": "a"}, "'context' must be text, not a list"),
        ({"question": "a?", "choices": ["x"], "answer": 0}, "two or more texts"),
        ({"question": "a?", "choices": ["x", 5], "answer": 0}, "two or more texts"),
        (
            {"question": "a?", "choices": ["x", "y"], "answer": 2},
            "the answer 2 is no number of a choice, 0 to 1",
        ),
        (
            {"question": "a?", "choices": ["x", "y"], "answer": "z"},
            "the answer 'z' is not one of the choices",
        ),
        (
            {"question": "a?", "choices": ["x", "y"], "answer": True},
            "'answer' must be text or a whole number or a",
        ),
        ({"question": "a?", "answer": []}, "'answer' must be text, or a list of texts"),
        ({"question": "a?", "answer": 3}, "'answer' must be text, or a list of texts"),
        ({"question": "a?", "answer": [" "]}, "'answer' must be text, or a list of texts"),
    ],
)
def test_lines_that_are_wrong(tmp_path: Path, row: dict, problem: str):
    path = write_rows(tmp_path / "wrong.jsonl", [ROWS[0], row])
    with pytest.raises(DataError, match=rf"wrong\.jsonl, line 2: .*{problem}"):
        read_items(path)


def test_items_that_cannot_be_asked_are_recorded(model: LanguageModel, items: list[Item]):
    empty = Item("empty", "", "Which?", ("a", ""), ("a",))
    blank = Item("blank", "", "___", (), ("a",))
    result = ask(model, [*items, empty, blank])
    assert len(result.answered) == len(items)
    assert [(each["item"], each["reason"]) for each in result.skipped] == [
        ("empty", "choice 1 ('') has no tokens"),
        ("blank", "the prompt is empty: there is nothing before the answer"),
    ]
    with pytest.raises(DataError, match="no item could be asked: empty: choice 1"):
        ask(model, [empty])
    with pytest.raises(TokenizerError, match="--tokenizer"):
        ask(LanguageModel(model.backend), items)
    # Characters that the tokenizer has not are a reason too.
    narrow = LanguageModel(model.backend, CharTokenizer("\n :.?AQabcdeghiknorstuwxy"))
    reasons = ask(narrow, [Item("x", "", "abc", ("a", "b"), ("a",)), items[2]], first_token="newline").skipped
    assert [each["item"] for each in reasons] == ["paris"]


def test_every_choice_is_scored_from_the_same_place(model: LanguageModel):
    """Where a choice changes the tokens of the prompt's end, its scores begin there for all choices."""

    class Merging(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            return super().encode(text.replace(": b", "\x01"))

    merging = LanguageModel(model.backend, Merging())
    item = Item("", "", "x", ("a", "b"), ("a",))
    pairs = questions._pairs(merging, questions.choose_first_token(merging), item, plain_prompt(item))
    assert pairs[0].context == pairs[1].context == (0, *b"Question: x\nAnswer")
    assert [bytes(pair.continuation) for pair in pairs] == [b": a", b"\x01"]
