"""The same questions under many prompts: what is read, what is found, what is written."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from rookery.checkpoints import Checkpoint
from rookery.cli import main
from rookery.cli import prompts as command
from rookery.config import sized
from rookery.errors import ConfigError, DataError
from rookery.evaluate.first_token import FirstToken
from rookery.evaluate.prompts import (
    FORMATS,
    ORDERS,
    PromptResult,
    PromptsResult,
    compare_prompts,
    put,
    write_csv,
)
from rookery.evaluate.prompts_page import prompts_page
from rookery.evaluate.questions import Answered, Item, answer, ask
from rookery.generate import LanguageModel
from rookery.generate.backend import open_backend
from rookery.models import to_tensors
from rookery.tokenizers import ByteTokenizer

ITEMS = [
    Item("one", "Rooks breed in colonies.", "Where?", (), ("in colonies",)),
    Item("two", "The bird is black.", "Which bird?", ("a rook", "a white swan"), ("a rook",)),
    Item("three", "The egg is blue.", "The egg is ___.", ("red", "blue"), ("blue",)),
]


@pytest.fixture(scope="module")
def model(random_model) -> LanguageModel:
    config = sized("7", vocab_size=256, width=64, num_layers=2)
    checkpoint = Checkpoint(config=config, tensors=to_tensors(random_model(config)))
    return LanguageModel(open_backend(checkpoint, name="native", threads=1), ByteTokenizer())


def test_what_is_read():
    item = ITEMS[1]
    assert put(item, "lines", "question before").text == "Which bird?\nThe bird is black.\n"
    assert put(item, "labels", "both sides").text == (
        "Question: Which bird?\n\nText: The bird is black.\n\nQuestion: Which bird?\n\nAnswer:"
    )
    assert put(item, "instruction", "document twice").text == (
        "Input: The bird is black.\n\nInput: The bird is black.\n\nInstruction: Which bird?\n\nResponse:"
    )
    # The official format, as rookery.generate.chat writes it.
    chat = put(item, "chat", "question after")
    assert chat.text + chat.before == "User: The bird is black.\nWhich bird?\n\nAssistant: "
    assert "\n\nUser:" in chat.stop
    assert len({put(item, f, o).text for f in FORMATS for o in ORDERS}) == len(FORMATS) * len(ORDERS)


def test_every_prompt_is_as_if_asked_alone(model: LanguageModel):
    result = compare_prompts(model, ITEMS, max_tokens=4)
    assert [(each.format, each.order) for each in result.prompts] == [(f, o) for f in FORMATS for o in ORDERS]
    for each in result.prompts[::5]:
        alone = ask(
            model, ITEMS, prompt=lambda item, each=each: put(item, each.format, each.order), max_tokens=4
        )
        assert [a.said("per byte") for a in each.answered] == [a.said("per byte") for a in alone.answered]
        assert each.score == pytest.approx(alone.score)
        assert each.accuracy("sum") == alone.accuracy("sum")
    assert result.best.score - result.worst.score == result.spread


def test_what_prompts_share_is_read_once(model: LanguageModel, monkeypatch):
    from rookery.evaluate import questions

    engines = []
    whole = questions.LikelihoodEngine
    monkeypatch.setattr(questions, "LikelihoodEngine", lambda m: engines.append(whole(m)) or engines[-1])
    asked = [(ITEMS[2], put(ITEMS[2], "lines", order)) for order in ("question after", "document twice")]
    answer(model, asked, first_token=FirstToken(0, ""))
    together = engines[0].tokens_read
    for each in asked:
        answer(model, [each], first_token=FirstToken(0, ""))
    assert together < sum(engine.tokens_read for engine in engines[1:])


def made(scores: dict[tuple[str, str], list[bool]]) -> PromptsResult:
    items = [Item(f"item {i}", "D", "Q", ("a", "b"), ("a",)) for i in range(len(next(iter(scores.values()))))]
    return PromptsResult(
        [
            PromptResult(
                *kind,
                [
                    Answered(
                        item, (0.0, 0.0), dict.fromkeys(("sum", "per token", "per byte"), 0 if right else 1)
                    )
                    for item, right in zip(items, rights, strict=True)
                ],
            )
            for kind, rights in scores.items()
        ],
        [],
        FirstToken(0, ""),
    )


def test_figures_of_answers_that_are_known():
    result = made(
        {
            ("lines", "question after"): [True, False, False, True],
            ("lines", "question before"): [True, True, True, True],
            ("chat", "question after"): [False, False, False, True],
            ("chat", "question before"): [False, True, False, True],
        }
    )
    assert [each.score for each in result.prompts] == [0.5, 1.0, 0.25, 0.5]
    assert (result.best.format, result.best.order) == ("lines", "question before")
    assert result.spread == 0.75
    assert result.mean_of("order") == {"question after": 0.375, "question before": 0.75}
    assert result.mean_of("format") == {"lines": 0.75, "chat": 0.375}
    assert result.prompts[0].error == pytest.approx(math.sqrt((1 / 3) / 4))
    changed = [(each.item.name, each.format, each.right, each.wrong, each.said) for each in result.changed()]
    assert changed == [
        ("item 1", "lines", "question before", "question after", "b"),
        ("item 2", "lines", "question before", "question after", "b"),
    ]


def test_the_page_and_the_table(tmp_path: Path):
    result = made({("lines", o): [True, i % 2 == 0] for i, o in enumerate(ORDERS)})
    page = prompts_page("<model>", "birds.jsonl", result).render()
    assert "&lt;model&gt; on birds.jsonl" in page
    assert "Where the order changed the answer" in page
    assert "cannot be told apart" in page
    assert "<svg" in page
    write_csv(tmp_path / "prompts.csv", result)
    rows = list(csv.DictReader((tmp_path / "prompts.csv").read_text().splitlines()))
    assert [row["order"] for row in rows] == list(ORDERS)
    assert float(rows[1]["score"]) == 0.5
    with pytest.raises(DataError, match="cannot be written"):
        write_csv(tmp_path / "absent" / "prompts.csv", result)


def test_items_that_cannot_be_ordered_are_recorded(model: LanguageModel):
    items = [*ITEMS[1:], Item("bare", "", "Why?", (), ("x",)), Item("empty", "D", "Q", ("a", ""), ("a",))]
    result = compare_prompts(model, items, formats=["lines"])
    assert result.items == 2
    assert [each["item"] for each in result.skipped] == ["bare", "empty"]
    assert "has no context" in result.skipped[0]["reason"]
    with pytest.raises(DataError, match="no item could be asked: bare"):
        compare_prompts(model, items[2:3])
    with pytest.raises(ConfigError, match="there is no format 'x'; there are lines"):
        compare_prompts(model, items, formats=["x"])
    with pytest.raises(ConfigError, match="there is no order"):
        compare_prompts(model, items, orders=[])


def test_the_command(model: LanguageModel, byte_file: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": item.name, "context": item.context, "question": item.question, "answer": list(item.answers)}
        | ({"choices": list(item.choices)} if item.choices else {})
        for item in ITEMS
    ]
    Path("birds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["birds.jsonl", "--orders", "question after", "question before", "--max-tokens", "3"]
    assert main(["prompts", str(byte_file), *options]) == 0
    printed = capsys.readouterr().out
    assert "question before" in printed
    assert f"page: {Path('prompts') / 'prompts.html'}" in printed
    saved = json.loads(Path("prompts/prompts.json").read_text())
    assert saved["items"] == 3
    assert len(saved["prompts"]) == 2 * len(FORMATS)
    assert (tuple(FORMATS), tuple(ORDERS)) == (command._FORMATS, command._ORDERS)
    before = Path("prompts/requests.jsonl").read_bytes()
    assert main(["prompts", str(byte_file), *options]) == 0
    assert Path("prompts/requests.jsonl").read_bytes() == before
    assert main(["prompts", str(byte_file), "birds.jsonl", "--limit", "0"]) == 2


@pytest.fixture(scope="module")
def byte_file(random_model, tmp_path_factory) -> Path:
    from rookery import checkpoints

    config = sized("7", vocab_size=256, width=32, num_layers=2)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    tensors = to_tensors(random_model(config))
    checkpoints.save(Checkpoint(config=config, tensors=tensors, tokenizer={"kind": "bytes"}), path)
    return path
