"""One measurement: what is to be measured, what came out, and the file that keeps it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rookery.errors import DataError
from rookery.files import atomic_write

__all__ = ["Point", "Row", "read_rows", "write_rows"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is measured: a model, what runs it, and after how much context."""

    family: str
    """A name of ``FAMILIES``, or "file"."""

    size: str
    """A published size, or the path of a model."""

    backend: str
    """"native", "torch" or "transformers"."""

    device: str
    """"cpu" or "cuda"."""

    dtype: str
    """Of the weights."""

    context: int
    """Tokens of the prompt."""

    tokens: int
    """Tokens generated after it."""

    threads: int
    """Of the CPU."""

    round: int = 0
    """Which one of several measurements of the same."""

    @property
    def series(self) -> tuple[str, ...]:
        """All but the context and the round: what is one line of a plot."""
        return (self.family, self.size, self.backend, self.device, self.dtype)

    def __str__(self) -> str:
        name = f"{self.family} {Path(self.size).name}"
        return f"{name}, {self.backend} {self.dtype} on {self.device}, context {self.context:,}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A point and what came out; figures are None where it was skipped."""

    point: Point
    skipped: str = ""
    """Why nothing was measured; empty where it was."""

    parameters: int | None = None
    """Of the model."""

    attention: str | None = None
    """What computes attention in transformers: "sdpa" or "eager"."""

    load_s: float | None = None
    """Seconds of loading, or of making random weights."""

    first_token_s: float | None = None
    """Seconds from the prompt to the first token."""

    tokens_per_s: float | None = None
    """Of decoding one stream after the prompt: 1 / the median of the steps."""

    before_bytes: int | None = None
    """Resident memory before the load: Python and libraries."""

    loaded_bytes: int | None = None
    """Resident memory after it."""

    load_peak_bytes: int | None = None
    """Most resident memory until then."""

    peak_bytes: int | None = None
    """Most resident memory while it ran (the kernel's VmHWM, reset after the load)."""

    gpu_peak_bytes: int | None = None
    """Most memory that torch held on the GPU."""

    @property
    def running_bytes(self) -> int | None:
        """What the model took while it ran: on a CPU the peak less what was there before the load."""
        if self.point.device != "cpu":
            return self.gpu_peak_bytes
        if self.peak_bytes is None or self.before_bytes is None:
            return None
        # What libraries gave back since may be more than a tiny model takes.
        return max(0, self.peak_bytes - self.before_bytes)


_TYPES = {"context": int, "tokens": int, "threads": int, "round": int}
_POINT = [field.name for field in fields(Point)]
_FIGURES = [field.name for field in fields(Row) if field.name != "point"]
_WHOLE = {name for name in _FIGURES if name == "parameters" or name.endswith("_bytes")}


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file.

    Raises:
        DataError: it is not such a file.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {*_POINT, *_FIGURES} - set(reader.fieldnames or ())
        if missing:
            raise DataError(f"{path}: is no file of this benchmark: it has no column {sorted(missing)[0]!r}")
        try:
            return [_row(values) for values in reader]
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: line {reader.line_num} cannot be read: {error}") from None


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write the file anew; a reader finds the old one or the whole new one."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*_POINT, *_FIGURES], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = asdict(row)
        point = values.pop("point")
        shown = {
            name: f"{value:.6g}" if isinstance(value, float) else value for name, value in values.items()
        }
        writer.writerow(point | shown)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def _row(values: Mapping[str, str]) -> Row:
    fields_of_point: dict[str, Any] = {name: _TYPES.get(name, str)(values[name]) for name in _POINT}
    point = Point(**fields_of_point)
    figures: dict[str, Any] = {}
    for name in _FIGURES:
        text = values[name]
        if name == "skipped":
            figures[name] = text
        elif text == "":
            figures[name] = None
        else:
            figures[name] = text if name == "attention" else int(text) if name in _WHOLE else float(text)
    return Row(point=point, **figures)
