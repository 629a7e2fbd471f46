"""Cells: the pieces that a comparison is made of, each with its own result file.

A cell is one model of one mixer, trained and tested, or one measurement of it. Its result is written once,
whole, when it is done, so that a run that was stopped does only what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rookery.errors import ConfigError, DataError
from rookery.evaluate.compare.config import CompareConfig
from rookery.files import atomic_write

__all__ = ["STAGES", "Cell", "CompareFolder", "Kind", "Result", "cells_of", "read_json", "write_json"]

Kind = Literal["speed", "text", "task", "training", "generation"]

STAGES: dict[Kind, str] = {
    "speed": "measuring speeds",
    "text": "learning text",
    "task": "learning tasks",
    "training": "cost of training by length",
    "generation": "cost of generation by length",
}
"""Kinds of cells, in the order in which they are run, and what they do."""

Result = dict[str, Any]
"""What a cell came to, plain values: "status" is "done", "skipped" or "failed" (then "reason" says why);
the rest is the kind's own."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One piece of a comparison."""

    kind: Kind
    mixer: str
    subject: str = ""
    """Of a text: the data set; of a task: its name."""
    seed: int = 0
    length: int = 0
    """Of the cost of training: tokens of a row."""

    @property
    def id(self) -> str:
        """A name that no other cell has, also a relative path."""
        last = {"text": f"{self.mixer}-{self.seed}", "task": f"{self.mixer}-{self.seed}"}.get(
            self.kind, f"{self.mixer}-{self.length}" if self.length else self.mixer
        )
        return "/".join(part for part in (self.kind, self.subject, last) if part)


def cells_of(config: CompareConfig) -> Iterator[Cell]:
    """Every cell of a comparison, in the order in which they are run.

    Seeds and subjects go round before mixers are finished, so that a run that was stopped has something of
    everything.
    """
    for mixer in config.mixers:
        yield Cell(kind="speed", mixer=mixer)
    for seed in range(config.seeds):
        for data in config.data:
            for mixer in config.mixers:
                yield Cell(kind="text", mixer=mixer, subject=data.name, seed=seed)
    for seed in range(config.task_seeds):
        for task in config.tasks:
            for mixer in config.mixers:
                yield Cell(kind="task", mixer=mixer, subject=task, seed=seed)
    if config.costs:
        for length in config.training_lengths:
            for mixer in config.mixers:
                yield Cell(kind="training", mixer=mixer, length=length)
        for mixer in config.mixers:
            yield Cell(kind="generation", mixer=mixer)


@dataclass(frozen=True)
class CompareFolder:
    """What a comparison leaves on the disk.

    config.json      its options
    plan.json        the speeds measured, and the budgets dealt out by them
    cells/           one JSON file for each cell
    work/            while it runs: tokens, and checkpoints of what is being trained
    *.csv  *.png     tables and plots
    index.html       the page
    """

    path: Path

    @property
    def config(self) -> Path:
        """The options."""
        return self.path / "config.json"

    @property
    def plan(self) -> Path:
        """The budgets."""
        return self.path / "plan.json"

    @property
    def work(self) -> Path:
        """What is needed while it runs."""
        return self.path / "work"

    @property
    def page(self) -> Path:
        """The page."""
        return self.path / "index.html"

    def result_path(self, cell: Cell) -> Path:
        """The result file of a cell."""
        return self.path / "cells" / f"{cell.id}.json"

    def checkpoint_path(self, cell: Cell) -> Path:
        """Where a cell that trains goes on from."""
        return self.work / f"{cell.id.replace('/', '-')}.pt"

    def tokens_path(self, data: str) -> Path:
        """The tokens of a data set."""
        return self.work / f"{data}.npz"

    def open(self, config: CompareConfig, *, resume: bool) -> None:
        """Make the folder for a new run, or find in it the run to go on with.

        Raises:
            ConfigError: there is a run in it and ``resume`` is not set, there is none and it is, or the run
                in it has other options.
        """
        if resume:
            theirs = self.read_config()
            different = config.differences(theirs)
            if different:
                name = different[0]
                raise ConfigError(
                    f"{self.path}: the run in this folder has other options: {', '.join(different)} ({name} "
                    f"is {getattr(theirs, name)!r}, not {getattr(config, name)!r}); choose another folder "
                    f"with --out, or resume with --resume {self.path} alone"
                )
            return
        if self.config.exists():
            raise ConfigError(
                f"{self.path}: there is a comparison in this folder already; go on with it by --resume, or "
                "choose another folder with --out"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot make the folder: {error.strerror}") from error
        write_json(self.config, config.to_dict())

    def read_config(self) -> CompareConfig:
        """The options of the run in this folder.

        Raises:
            ConfigError: there is no run in it, or its config.json is broken.
        """
        if not self.config.exists():
            raise ConfigError(f"{self.path}: there is no comparison in this folder")
        return CompareConfig.from_dict(read_json(self.config))

    def result(self, cell: Cell) -> Result | None:
        """What a cell came to; None while it is not done.

        Raises:
            DataError: the file is broken.
        """
        path = self.result_path(cell)
        return read_json(path) if path.exists() else None

    def write_result(self, cell: Cell, result: Result) -> None:
        """Keep what a cell came to."""
        path = self.result_path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"cell": asdict(cell)} | result)

    def results(self, config: CompareConfig, kind: Kind) -> list[tuple[Cell, Result]]:
        """All results of one kind that are there, in the order of the cells."""
        pairs = [(cell, self.result(cell)) for cell in cells_of(config) if cell.kind == kind]
        return [(cell, result) for cell, result in pairs if result is not None]


def write_json(path: Path, values: Any) -> None:
    """Write plain values, atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(values, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read what ``write_json`` wrote.

    Raises:
        DataError: the file is no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: not a JSON object")
    return values
