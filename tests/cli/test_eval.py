"""The command: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rookery.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("A rook is a large bird. " * 20)
    (tmp_path / "lambada_test.jsonl").write_text('{"text": "one two three two one"}\n{"text": "a b a b a"}\n')
    (tmp_path / "questions.jsonl").write_text(
        '{"question": "Which bird?", "choices": ["a rook", "a crow"], "answer": 0}\n'
        '{"question": "Which bird?", "answer": "a rook"}\n'
    )
    return tmp_path


def test_a_text(byte_model: Path, here: Path, capsys):
    assert main(["eval", str(byte_model), "--text", "text.txt", "--json", "out.json", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "bits per byte" in printed
    assert "64 to 127" in printed
    [result] = json.loads((here / "out.json").read_text())["results"]
    assert result["tokens"] == result["bytes"] == 480
    assert f"{result['bits_per_byte']:.3f}" in printed


def test_several_models_are_one_table(byte_model: Path, here: Path, capsys):
    other = here / "other.safetensors"
    other.write_bytes(byte_model.read_bytes())
    assert main(["eval", str(byte_model), str(other), "--text", "text.txt", "--window", "64"]) == 0
    printed = capsys.readouterr().out
    assert byte_model.name in printed
    assert "other.safetensors" in printed


def test_tasks_from_files(byte_model: Path, here: Path, capsys):
    pytest.importorskip("lm_eval")
    command = ["eval", str(byte_model), "--tasks", "lambada_openai", "--data", ".", "--limit", "1"]
    assert main([*command, "--json", "all.json"]) == 0
    printed = capsys.readouterr()
    assert "perplexity" in printed.out
    assert "it/s" not in printed.err
    folder = here / "evaluations" / byte_model.stem
    saved = json.loads((folder / "results.json").read_text())
    assert saved["tasks"]["lambada_openai"]["items"] == 1
    assert json.loads((here / "all.json").read_text())[byte_model.name]["tasks"] == saved["tasks"]
    assert len((folder / "requests.jsonl").read_text().splitlines()) == 1


def test_questions(byte_model: Path, here: Path, capsys):
    assert main(["eval", str(byte_model), "--questions", "questions.jsonl", "--max-tokens", "4"]) == 0
    printed = capsys.readouterr().out
    assert "per byte" in printed
    assert "exact match" in printed
    saved = json.loads((here / "evaluations" / byte_model.stem / "questions.json").read_text())
    assert saved["items"] == 2
    assert saved["answers"][0]["taken"]["sum"] in (0, 1)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--tasks", "lambada_openai", "--data", "absent"], "no such folder"),
        (["--tasks", "no_task_of_this_name", "--limit", "0"], "the limit of items must be 1 or more"),
        (["--questions", "absent.jsonl"], "absent.jsonl: there is no such file"),
        (["--text", "absent.txt"], "absent.txt"),
        (["--text", "text.txt", "--first-token", "x"], "end-of-text, newline or an id, not 'x'"),
    ],
)
def test_what_is_refused(byte_model: Path, here: Path, capsys, options: list[str], problem: str):
    assert main(["eval", str(byte_model), *options]) == 2
    assert problem in capsys.readouterr().err


def test_models_that_are_refused(byte_model: Path, here: Path, capsys):
    assert main(["eval", str(byte_model), str(byte_model), "--text", "text.txt"]) == 2
    assert "named twice" in capsys.readouterr().err
    assert main(["eval", "hf:gpt2", "--questions", "questions.jsonl"]) == 2
    assert "hf: is for --text" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb", [["eval", "MODEL", "--questions", "questions.jsonl"], ["prompts", "MODEL", "documents.jsonl"]]
)
def test_what_was_stopped_goes_on(byte_model: Path, here: Path, capsys, monkeypatch, verb: list[str]):
    row = {"context": "It is black.", "question": "Which bird?", "choices": ["a rook", "a crow"], "answer": 0}
    (here / "documents.jsonl").write_text((json.dumps(row) + "\n") * 2)
    command = [str(byte_model) if each == "MODEL" else each for each in verb] + [
        "--out",
        "out",
        "--max-tokens",
        "3",
    ]

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # After the choices, before the free answers.
        patch.setattr("rookery.evaluate.questions._write", stop)
        assert main(command) == 130
    assert "The same command goes on" in capsys.readouterr().err
    [path] = here.glob("out/**/requests.jsonl")
    kept = path.read_bytes()
    assert kept
    assert not list(here.glob("out/**/*.json"))
    assert main(command) == 0
    assert path.read_bytes().startswith(kept)
    assert list(here.glob("out/**/*.json"))
