"""Whole comparisons: what they leave, how they stop, and that they go on as if they had not."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re
import signal
import threading
from pathlib import Path

import pytest

from rookery.cli import main
from rookery.errors import ConfigError, DataError
from rookery.evaluate.compare import compare, data_set, perform, resume, workers
from rookery.evaluate.compare.cells import Cell, CompareFolder, cells_of, write_json
from rookery.evaluate.compare.display import SilentReporter

OPTIONS = (
    *("--mixers", "rwkv7,attention", "--seeds", "1", "--tokens", "512", "--threads", "1"),
    *("--parameters", "60k", "--layers", "2", "--width", "32", "--context", "32", "--batch", "2"),
    *("--contexts", "16,64", "--valid-tokens", "256", "--tasks", "reverse", "--task-parameters", "30k"),
    *("--task-layers", "1", "--task-width", "32", "--task-batch-tokens", "128"),
    *("--training-lengths", "16,32", "--generation-lengths", "16,32"),
)


def without_drawing(monkeypatch) -> None:
    """Reports without plots, which take most of the time of a tiny comparison."""
    from rookery.evaluate.compare import run
    from rookery.evaluate.compare.findings import Findings
    from rookery.evaluate.compare.tables import write_tables

    def write(folder, config):
        write_tables(Findings.read(folder, config), folder.path)
        folder.page.write_text("no plots")

    monkeypatch.setattr(run, "write_report", write)


@pytest.fixture
def no_drawing(monkeypatch):
    without_drawing(monkeypatch)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_leaves_tables_plots_and_a_page(text_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(text_file), *OPTIONS, "--out", "out", "--markdown", "page.md"]) == 0
    said = capsys.readouterr().out
    assert "Done: out/index.html" in said
    assert re.search(r"Attention: training .* \(16–32\), .* state 0\.98 \(16–32\)", said)
    assert re.search(r"RWKV-7: .* state 0\.00", said)

    out = tmp_path / "out"
    assert not (out / "work").exists()
    models = rows(out / "models.csv")
    assert [(row["mixer"], row["tokens"], row["context"]) for row in models] == [
        ("rwkv7", "512", "64"),
        ("attention", "512", "64"),
    ]
    assert all(abs(int(row["parameters"]) - 60_000) < 1200 for row in models)
    assert len(rows(out / "training_loss.csv")) == 2 * 8
    assert {row["context"] for row in rows(out / "loss_by_context.csv")} == {"16", "64"}
    tasks = rows(out / "tasks.csv")
    assert len(tasks) == 2 * 6
    assert all(0 <= float(row["answers"]) <= 1 for row in tasks)
    assert {row["length"] for row in rows(out / "training_cost.csv")} == {"16", "32"}
    assert len(rows(out / "generation_cost.csv")) == 4
    assert len(rows(out / "exponents.csv")) == 6

    page = (out / "index.html").read_text()
    assert page.count("<svg") == 5
    assert "This comparison is not finished" not in page
    markdown = (tmp_path / "page.md").read_text()
    pictures = re.findall(r"\]\((.*?\.png)\)", markdown)
    assert len(pictures) == 5
    assert all((tmp_path / picture).exists() for picture in pictures)
    assert "| RWKV-7 |" in markdown

    # A finished one writes its report anew, and refuses what it was not made with.
    (out / "index.html").unlink()
    without_drawing(monkeypatch)
    assert main(["compare", "--resume", "out"]) == 0
    assert (out / "index.html").exists()
    assert main(["compare", str(text_file), *OPTIONS, "--seeds", "2", "--resume", "out"]) == 2
    assert "has other options: seeds (seeds is 1, not 2)" in capsys.readouterr().err
    assert main(["compare", str(text_file), *OPTIONS, "--out", "out"]) == 2
    assert "there is a comparison in this folder already" in capsys.readouterr().err


class Interrupter(SilentReporter):
    """Does something when a cell tells for the first time that it goes on."""

    def __init__(self, kind: str, act):
        self.kind, self.act, self.count = kind, act, 0

    def cell(self, cell: Cell, part: float, text: str) -> None:
        if cell.kind == self.kind and not self.count:
            self.count += 1
            self.act()


def losses(folder: Path, config) -> dict[str, list[float]]:
    results = {cell.id: CompareFolder(folder).result(cell) for cell in cells_of(config)}
    return {name: result["losses"] for name, result in results.items() if result and "losses" in result}


def test_a_comparison_that_was_stopped_goes_on_inside_its_cells(tiny, tmp_path, no_drawing):
    config = tiny(mixers=("rwkv7",), tokens=32 * 2 * 40, task_tokens=128 * 40, costs=False)
    compare(config, tmp_path / "unbroken")
    for kind in ("text", "task"):
        reporter = Interrupter(kind, lambda: os.kill(os.getpid(), signal.SIGINT))
        if kind == "text":
            stopped = compare(config, tmp_path / "broken", reporter=reporter)
        else:
            stopped = resume(tmp_path / "broken", reporter=reporter)
        assert stopped.interrupted == signal.SIGINT
        assert stopped.missing > 0
        # In the middle of a cell, which has left its checkpoint.
        assert len(list((tmp_path / "broken" / "work").glob(f"{kind}-*.pt"))) == 1
    result = resume(tmp_path / "broken")
    assert (result.interrupted, result.missing) == (None, 0)
    assert losses(tmp_path / "broken", config) == losses(tmp_path / "unbroken", config)
    assert len(losses(tmp_path / "broken", config)) == 2


def test_a_process_that_is_killed_is_a_failure_with_its_reason(tiny, tmp_path, no_drawing):
    config = tiny(mixers=("rwkv7",), tasks=(), costs=False, tokens=32 * 2 * 60)

    def kill() -> None:
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)

    result = compare(config, tmp_path / "run", reporter=Interrupter("text", kill))
    assert (result.missing, result.interrupted) == (1, None)
    [row] = rows(tmp_path / "run" / "not_measured.csv")
    assert row["what"] == "text/beer/rwkv7-0"
    assert "ended by SIGKILL" in row["reason"]
    assert resume(tmp_path / "run").missing == 0


class Pipe:
    """Keeps what a cell says."""

    def __init__(self):
        self.sent: list[tuple] = []

    def send(self, message: tuple) -> None:
        self.sent.append(message)


def test_divergence_is_a_result_and_a_mistake_is_not(tiny, tmp_path, monkeypatch):
    """What a cell's process does, in this one."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    folder, cell = CompareFolder(tmp_path / "run"), Cell(kind="task", mixer="rwkv7", subject="parity")
    folder.open(tiny(data=(), learning_rate=1e30), resume=False)
    write_json(
        folder.plan,
        {
            "text_tokens": 0,
            "task_tokens": {"parity": 1280},
            "training_limit": 1,
            "generation_limit": 1,
            "threads": 1,
            "seconds_per_token": {},
            "expected": {},
        },
    )
    pipe, stop = Pipe(), threading.Event()
    workers._main(workers.CellJob(cell, folder, 1), pipe, stop)
    result = folder.result(cell)
    assert result is not None
    assert result["status"] == "failed"
    assert "it diverged" in result["reason"]
    assert pipe.sent[0][0] == "progress"

    monkeypatch.setattr(perform, "run_task", lambda *_, **__: 1 / 0)
    folder.result_path(cell).unlink()
    workers._main(workers.CellJob(cell, folder, 1), pipe, stop)
    assert folder.result(cell) is None
    assert pipe.sent[-1][0] == "broken"
    assert "ZeroDivisionError" in pipe.sent[-1][1]


def test_bad_input_is_said_before_anything_is_made(tiny, text_file, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="no mixer 'mamba'"):
        compare(tiny(mixers=("mamba",)), out)
    with pytest.raises(ConfigError, match="parameters"):
        compare(tiny(parameters=2000), out)
    with pytest.raises(DataError, match="beer: a context of 4096 needs a held-out document"):
        compare(tiny(contexts=(64, 4096)), out)
    text_file.write_text("too little\n" * 9)
    with pytest.raises(DataError, match="too few for a context of 128"):
        compare(tiny(context=128), out)
    with pytest.raises(DataError, match="no such file"):
        compare(tiny(data=(data_set(str(tmp_path / "nothing.txt")),)), out)
    assert not out.exists()
    with pytest.raises(ConfigError, match="there is no comparison in this folder"):
        resume(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "1k"], "give one folder"),
        (["--tokens", "1k", "--out", "x", "--resume", "y"], "give one folder"),
        (["--out", "x"], "one budget"),
        (["--out", "x", "--tokens", "1k", "--mixers", "rwkv7,mamba"], "no mixer 'mamba'; there are rwkv4"),
        (["--out", "x", "--tokens", "1k", "--tasks", "none", "--no-costs"], "nothing to measure"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_broken_configuration_is_said(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"mixers": ["rwkv7"], "tokens": 5, "colour": "blue"}))
    with pytest.raises(ConfigError, match="not a configuration of a comparison"):
        resume(tmp_path)
