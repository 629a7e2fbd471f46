"""The report, from results that were written here and not measured."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from rookery.errors import ConfigError
from rookery.evaluate.compare import data_set
from rookery.evaluate.compare.cells import Cell, CompareFolder, cells_of, write_json
from rookery.evaluate.compare.config import CompareConfig
from rookery.evaluate.compare.findings import Findings
from rookery.evaluate.compare.plots import passkey_plot
from rookery.evaluate.compare.report import exponent_lines, tell, write_markdown, write_report
from rookery.evaluate.compare.tables import write_tables
from rookery.evaluate.tasks import TASKS
from rookery.rivals import MIXERS

MIXER_NAMES = ("rwkv7", "attention", "lstm")


def result_of(cell: Cell, config: CompareConfig) -> dict:
    number = MIXER_NAMES.index(cell.mixer)
    if cell.kind == "text":
        if cell.mixer == "lstm":
            return {"status": "failed", "reason": "it diverged"}
        contexts = [c for c in config.contexts if not (cell.mixer == "attention" and c > 256)]
        return {
            "status": "done",
            "parameters": 1_000_000 + number,
            "tokens": 40 * 2048,
            "seconds": 10.0 + number,
            "bits_per_nat": 1.44,
            "tested_tokens": 8192,
            "contexts": [
                {"context": c, "loss": 2 - 0.1 * i, "bits_per_byte": 3.0} for i, c in enumerate(contexts)
            ],
            "not_applicable": {
                str(c): "reads 256 tokens at most" for c in config.contexts if c not in contexts
            },
            "positions": [{"first": 0, "last": 4, "loss": 3.0}, {"first": 4, "last": 64, "loss": 2.0}],
            "validations": [{"step": s, "seconds": s / 4, "loss": 4 - s / 20} for s in (1, 10, 40)],
            "losses": [5 - 0.01 * s for s in range(40)],
            "step_seconds": [0.25 * s for s in range(40)],
        }
    if cell.kind == "task":
        task = TASKS[cell.subject]
        scores = [
            {"size": s, "depth": d, "examples": 20, "answers": 0.5, "last": 0.25, "whole": 0.75}
            for s in task.test_sizes
            for d in task.depths or (None,)
        ]
        return {
            "status": "done",
            "parameters": 150_000,
            "tokens": 99,
            "seconds": 1.0,
            "scores": scores,
            "losses": [1.0],
            "not_applicable": {},
        }
    if cell.kind == "training":
        if cell.mixer == "attention" and cell.length == 4096:
            return {"status": "skipped", "reason": "too long a step"}
        seconds = 1e-6 * cell.length ** (2 if cell.mixer == "attention" else 1)
        return {
            "status": "done",
            "length": cell.length,
            "seconds": seconds,
            "tokens_per_second": cell.length / seconds,
            "peak_bytes": 2000 * cell.length,
            "steps": 3,
        }
    points = [
        {
            "after": n,
            "status": "done",
            "seconds": 1e-3,
            "state_bytes": 32 * n if number else 512,
            "memory_bytes": 4096,
        }
        for n in config.generation_lengths
    ]
    return {"status": "done", "points": points}


@pytest.fixture
def folder(tmp_path: Path) -> CompareFolder:
    (tmp_path / "book.txt").write_text("text")
    config = CompareConfig(
        data=(data_set(str(tmp_path / "book.txt")),),
        mixers=MIXER_NAMES,
        minutes=10,
        contexts=(64, 256, 1024),
        tasks=("mqar", "passkey", "a5"),
        training_lengths=(64, 1024, 2048, 4096),
        generation_lengths=(1024, 4096),
    )
    folder = CompareFolder(tmp_path / "run")
    folder.open(config, resume=False)
    plan = {"text_tokens": 81920, "task_tokens": {}, "expected": {"x": 600.0}}
    write_json(folder.plan, plan)
    write_json(folder.path / "machine.json", {"processor": "a CPU", "threads": 2, "torch": "2"})
    for cell in cells_of(config):
        if cell.kind != "speed" and not (cell.kind == "task" and cell.subject == "a5"):
            folder.write_result(cell, result_of(cell, config))
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_has_all_that_was_found_and_says_what_was_not(folder):
    config = folder.read_config()
    page = write_report(folder, config).read_text()
    for name in ("loss-book", "context-book", "tasks", "passkey", "training-cost", "generation-cost"):
        assert (folder.path / f"{name}.png").stat().st_size > 5000
    assert page.count("<svg") == 6
    # A5 has no results: it has no section, and the page says that it is not finished.
    assert "This comparison is not finished" in page
    assert "Word problem of A5" not in page
    for mixer in MIXER_NAMES:
        assert MIXERS[mixer].title in page
    for reason in ("it diverged", "reads 256 tokens at most", "too long a step"):
        assert reason in page
    for task in ("mqar", "passkey"):
        assert TASKS[task].known[0].source in page
    assert {row["what"] for row in table(folder.path / "not_measured.csv")} == {
        "text/book/lstm-0",
        "text/book/lstm-1",
        "text/book/attention-0, context 1024",
        "text/book/attention-1, context 1024",
        "training/attention-4096",
    }


def test_exponents_name_the_lengths_they_were_fitted_on(folder):
    lines = exponent_lines(folder)
    assert lines == [
        "RWKV-7: training 1.00 (1k–4k), a generated token 0.00 (1k–4k), state 0.00 (1k–4k)",
        "Attention: training 2.00 (1k–2k), a generated token 0.00 (1k–4k), state 1.00 (1k–4k)",
        "LSTM: training 1.00 (1k–4k), a generated token 0.00 (1k–4k), state 1.00 (1k–4k)",
    ]
    write_tables(Findings.read(folder, folder.read_config()), folder.path)
    rows = table(folder.path / "exponents.csv")
    assert [row["lengths"] for row in rows if row["mixer"] == "attention"] == ["2", "2", "2"]


def test_means_and_spreads_are_those_of_the_seeds(folder):
    config = folder.read_config()
    cell = Cell(kind="text", mixer="rwkv7", subject="book", seed=1)
    result = result_of(cell, config)
    result["contexts"][1] |= {"loss": 2.1, "bits_per_byte": 4.0}
    folder.write_result(cell, result)
    text = tell(Findings.read(folder, config)).markdown("x")
    # At context 256: 1.9 and 2.1; bits per byte 3 and 4.
    assert "| 2.000 ± 0.100 |" in text
    assert "| RWKV-7 | 3.500 |" in text
    assert "| Attention | 3.000 |" in text


def test_markdown_links_to_the_plots(folder, tmp_path):
    (tmp_path / "docs").mkdir()
    write_markdown(folder, tmp_path / "docs" / "compare.md")
    text = (tmp_path / "docs" / "compare.md").read_text()
    assert "](../run/loss-book.png)" in text
    assert "| RWKV-7 | 1,000,000 |" in text
    assert "n/a" in text
    with pytest.raises(ConfigError, match="no such folder"):
        write_markdown(folder, tmp_path / "nowhere" / "compare.md")


def test_the_heat_map_has_the_measure_of_the_task(folder):
    figure = passkey_plot(Findings.read(folder, folder.read_config()), "passkey")
    written = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert written == {"75"}


def test_a_folder_with_nothing_in_it_has_a_report_too(tmp_path):
    config = CompareConfig(mixers=("rwkv7",), tokens=100)
    folder = CompareFolder(tmp_path / "run")
    folder.open(config, resume=False)
    assert "not finished" in write_report(folder, config).read_text()
