"""The record of a run: one CSV row for each step and for each validation."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from rookery.files import atomic_write

__all__ = ["Metrics", "MetricsFile", "read_metrics"]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """One row of metrics.csv. A step fills the middle columns, a validation the last two."""

    step: int
    """Steps done."""

    tokens: int
    """Tokens trained on."""

    seconds: float
    """Seconds of training, validation and checkpoints included, in all sittings."""

    loss: float | None = None
    """Nats per token of the rows of this step, before the step."""

    learning_rate: float | None = None
    """That this step was made with."""

    grad_norm: float | None = None
    """Norm of the gradient of all parameters together, before clipping."""

    tokens_per_second: float | None = None
    """Of this step alone."""

    valid_loss: float | None = None
    """Nats per token of the validation data."""

    bits_per_byte: float | None = None
    """The same in bits per byte of text."""


_COLUMNS = [field.name for field in fields(Metrics)]


class MetricsFile:
    """metrics.csv, open for new rows.

    Args:
        path: of the file.
        kept: rows that it begins with: none for a new run, those up to the checkpoint for a resumed one.
    """

    def __init__(self, path: Path, kept: Sequence[Metrics] = ()):
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(map(_row, kept))
        with atomic_write(path) as file:
            file.write(text.getvalue().encode())
        self.rows = list(kept)
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")

    def add(self, row: Metrics) -> None:
        """Write one row; it is in the file when this returns."""
        self.rows.append(row)
        self._writer.writerow(_row(row))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: str | Path) -> list[Metrics]:
    """The rows of a metrics.csv. Floats come back as they were, to the last bit."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        # A row that a crash cut short has None for the columns that are missing.
        return [_metrics(row) for row in csv.DictReader(file) if None not in row.values()]


def _metrics(row: dict[str, str]) -> Metrics:
    step, tokens = int(row.pop("step")), int(row.pop("tokens"))
    return Metrics(step=step, tokens=tokens, **{name: float(value) for name, value in row.items() if value})


def _row(metrics: Metrics) -> list[str]:
    # repr of a float is the shortest text that reads back as the same float.
    return ["" if value is None else repr(value) for value in astuple(metrics)]
