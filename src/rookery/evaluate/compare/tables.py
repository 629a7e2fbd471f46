"""The CSV files of a comparison: everything that was measured, one row each."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rookery.evaluate.compare.findings import Findings
from rookery.files import atomic_write

__all__ = ["TABLES", "write_tables"]

Row = Sequence[Any]


def _models(findings: Findings) -> Iterator[Row]:
    for data, mixer, cell, result in _texts(findings):
        last = result["contexts"][-1] if result["contexts"] else {}
        yield (
            *(data, mixer, cell.seed, result["parameters"], result["tokens"], result["seconds"]),
            *(last.get("context"), last.get("loss"), last.get("bits_per_byte"), result["tested_tokens"]),
        )


def _losses(findings: Findings) -> Iterator[Row]:
    for data, mixer, cell, result in _texts(findings):
        each = result["tokens"] / max(len(result["losses"]), 1)
        pairs = zip(result["losses"], result["step_seconds"], strict=True)
        for step, (loss, seconds) in enumerate(pairs, start=1):
            yield data, mixer, cell.seed, step, round(step * each), seconds, loss


def _validations(findings: Findings) -> Iterator[Row]:
    for data, mixer, cell, result in _texts(findings):
        each = result["tokens"] / max(len(result["losses"]), 1)
        for point in result["validations"]:
            yield (
                *(data, mixer, cell.seed, point["step"], round(point["step"] * each)),
                *(point["seconds"], point["loss"]),
            )


def _positions(findings: Findings) -> Iterator[Row]:
    for data, mixer, cell, result in _texts(findings):
        for point in result["positions"]:
            yield data, mixer, cell.seed, point["first"], point["last"] - 1, point["loss"]


def _contexts(findings: Findings) -> Iterator[Row]:
    for data, mixer, cell, result in _texts(findings):
        for point in result["contexts"]:
            yield data, mixer, cell.seed, point["context"], point["loss"], point["bits_per_byte"]


def _training(findings: Findings) -> Iterator[Row]:
    for mixer, pairs in findings.done("training").items():
        for _, result in pairs:
            yield (
                *(mixer, result["length"], result["seconds"], result["tokens_per_second"]),
                *(result["peak_bytes"], result["steps"]),
            )


def _generation(findings: Findings) -> Iterator[Row]:
    for mixer in findings.done("generation"):
        for point in findings.points(mixer):
            yield mixer, point["after"], point["seconds"], point["state_bytes"], point["memory_bytes"]


def _exponents(findings: Findings) -> Iterator[Row]:
    for mixer in findings.config.mixers:
        fits = {
            "seconds of a training step": findings.training_exponent(mixer),
            "seconds of a generated token": findings.generation_exponent(mixer),
            "bytes of state": findings.state_exponent(mixer),
        }
        for cost, fit in fits.items():
            if fit is not None:
                yield mixer, cost, fit.value, fit.first, fit.last, fit.points


def _tasks(findings: Findings) -> Iterator[Row]:
    for task in findings.config.tasks:
        for mixer, pairs in findings.done("task", task).items():
            for cell, result in pairs:
                for score in result["scores"]:
                    yield (
                        *(task, mixer, cell.seed, result["parameters"], result["tokens"], score["size"]),
                        *(score["depth"], score["answers"], score["last"], score["whole"], score["examples"]),
                    )


def _not_measured(findings: Findings) -> Iterator[Row]:
    yield from findings.not_measured()


TABLES = {
    "models.csv": (
        "data mixer seed parameters tokens seconds context loss bits_per_byte tested_tokens",
        _models,
    ),
    "training_loss.csv": ("data mixer seed step tokens seconds loss", _losses),
    "held_out_loss.csv": ("data mixer seed step tokens seconds loss", _validations),
    "loss_by_position.csv": ("data mixer seed first_position last_position loss", _positions),
    "loss_by_context.csv": ("data mixer seed context loss bits_per_byte", _contexts),
    "training_cost.csv": ("mixer length seconds tokens_per_second peak_bytes steps", _training),
    "generation_cost.csv": ("mixer after seconds state_bytes memory_bytes", _generation),
    "exponents.csv": ("mixer cost exponent first_length last_length lengths", _exponents),
    "tasks.csv": (
        "task mixer seed parameters tokens size depth answers last whole examples",
        _tasks,
    ),
    "not_measured.csv": ("what reason", _not_measured),
}
"""File -> its columns, and what gives its rows. Losses are nats per token, accuracies parts of 1."""


def write_tables(findings: Findings, folder: Path) -> None:
    """Write every CSV file that has rows; one that has none any more is removed."""
    for name, (columns, rows_of) in TABLES.items():
        rows = list(rows_of(findings))
        if not rows:
            (folder / name).unlink(missing_ok=True)
            continue
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns.split())
        # repr of a float is the shortest text that reads back as the same float.
        writer.writerows([repr(v) if isinstance(v, float) else v for v in row] for row in rows)
        with atomic_write(folder / name) as file:
            file.write(text.getvalue().encode())


def _texts(findings: Findings) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    for data in findings.config.data:
        for mixer, pairs in findings.done("text", data.name).items():
            for cell, result in pairs:
                yield data.name, mixer, cell, result
