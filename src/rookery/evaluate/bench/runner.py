"""Measuring many points, one fresh process after the other; what is in the file is not measured again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rookery.evaluate.bench.memory import available_bytes, needed_bytes
from rookery.evaluate.bench.point import Point, Row, read_rows, write_rows
from rookery.evaluate.bench.worker import ANSWER

__all__ = ["CSV", "measure_apart", "run"]

CSV = "bench.csv"

Measure = Callable[[Point, float, int | None], Row]


def run(
    points: Sequence[Point],
    folder: str | Path,
    *,
    limit_s: float = 300.0,
    memory: int | None = None,
    again: bool = False,
    tell: Callable[[Row], None] = lambda row: None,
    advance: Callable[[int, int], None] = lambda done, total: None,
    measure: Measure | None = None,
) -> list[Row]:
    """Measure the points that the folder's file has not, each as soon as it is done in the file.

    Args:
        points: what to measure, in this order.
        folder: gets ``bench.csv``; made if it is not there.
        limit_s: most seconds of one point; one that takes longer is recorded as skipped.
        memory: most bytes of one process on a CPU; by default 80 % of what the machine has left.
        again: measure points once more that were skipped.
        tell: is told each row that is made.
        advance: is told how many points of how many are done.
        measure: makes a row of a point, its time limit and its memory limit; by default in a process of its
            own.

    Returns:
        The rows of the points, in their order.

    Raises:
        DataError: the file is none of this benchmark.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if memory is None and (free := available_bytes()) is not None:
        memory = int(0.8 * free)
    known = {row.point: row for row in read_rows(folder / CSV)}
    if again:
        wanted = set(points)
        known = {point: row for point, row in known.items() if not (row.skipped and point in wanted)}
    left = [point for point in points if point not in known]
    for done, point in enumerate(left):
        advance(done, len(left))
        reason = _foreseen(point, known, memory)
        row = (
            Row(point=point, skipped=reason) if reason else (measure or measure_apart)(point, limit_s, memory)
        )
        known[point] = row
        write_rows(known.values(), folder / CSV)
        tell(row)
    advance(len(left), len(left))
    return [known[point] for point in points]


def measure_apart(point: Point, limit_s: float, memory: int | None) -> Row:
    """Measure one point in a fresh process."""
    request = json.dumps({"point": asdict(point), "memory": memory})
    command = [sys.executable, "-m", "rookery.evaluate.bench.worker"]
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Row(point=point, skipped=f"it took longer than {limit_s:g} s")
    for line in done.stdout.splitlines():
        if line.startswith(ANSWER):
            answer: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
            return Row(point=point, **answer)
    words = done.stderr.strip().splitlines()
    ended = f"by signal {-done.returncode}" if done.returncode < 0 else f"with status {done.returncode}"
    # The kernel ends what takes the machine's last memory.
    cause = ", maybe for its memory" if done.returncode == -9 else f": {words[-1][:200]}" if words else ""
    return Row(point=point, skipped=f"its process was ended {ended}{cause}")


def _foreseen(point: Point, known: dict[Point, Row], memory: int | None) -> str:
    """Why a point need not be tried; empty where it must."""
    for other, row in known.items():
        alike = other.series == point.series and other.threads == point.threads
        if alike and row.skipped and other.context <= point.context:
            first = row.skipped.partition("at context ")[2]
            if first:
                return row.skipped
            return (
                row.skipped
                if other.context == point.context
                else f"at context {other.context:,} {row.skipped}"
            )
    needed = needed_bytes(point)
    if memory is not None and needed is not None and point.device == "cpu" and needed > memory:
        return f"it needs about {needed / 1e9:.1f} GB of memory, and {memory / 1e9:.1f} GB are allowed"
    return ""
