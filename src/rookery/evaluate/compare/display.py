"""What a person sees while a comparison runs: a bar with time left on a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import fmean
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from rookery.evaluate.compare.cells import Cell, Result
from rookery.train.display import duration

__all__ = ["CompareReporter", "SilentReporter", "make_reporter", "outcome"]

# Seconds between plain lines of progress.
_PLAIN_INTERVAL = 15.0


class CompareReporter(Protocol):
    """Is told what happens in a comparison."""

    def say(self, line: str) -> None:
        """Something worth a line."""

    def expect(self, seconds: Mapping[str, float], *, done: int, cells: int) -> None:
        """What is still to do: cell -> expected seconds; how many cells are done, of how many."""

    def cell(self, cell: Cell, part: float, text: str) -> None:
        """A cell goes on."""

    def cell_done(self, cell: Cell, result: Result) -> None:
        """A cell is done."""

    def end(self) -> None:
        """There is no more."""


class SilentReporter:
    """Says nothing."""

    def say(self, line: str) -> None:
        """Say nothing."""

    def expect(self, seconds: Mapping[str, float], *, done: int, cells: int) -> None:
        """Say nothing."""

    def cell(self, cell: Cell, part: float, text: str) -> None:
        """Say nothing."""

    def cell_done(self, cell: Cell, result: Result) -> None:
        """Say nothing."""

    def end(self) -> None:
        """Say nothing."""


class _Clock:
    """Time left, from what was expected and how long it took so far."""

    def __init__(self) -> None:
        self._expected: dict[str, float] = {}
        self._parts: dict[str, float] = {}
        self._began = time.monotonic()
        self.cells = self.finished = 0

    def expect(self, seconds: Mapping[str, float], done: int, cells: int) -> None:
        self._expected = {name: max(value, 1e-3) for name, value in seconds.items()}
        self._parts, self._began = {}, time.monotonic()
        self.cells, self.finished = cells, done

    def update(self, cell: Cell, part: float) -> None:
        self._parts[cell.id] = part

    @property
    def part(self) -> float:
        total = sum(self._expected.values())
        done = sum(part * self._expected.get(name, 0.0) for name, part in self._parts.items())
        return min(done / total, 1.0) if total else 0.0

    @property
    def left(self) -> float | None:
        """Seconds; what was expected counts as much as what was seen, at the beginning more."""
        part, spent = self.part, time.monotonic() - self._began
        total = sum(self._expected.values())
        if not total:
            return None
        seen = spent / part if part > 0.005 else total
        weight = min(part * 4, 1.0)
        return max((weight * seen + (1 - weight) * total) * (1 - part), 0.0)


class PlainReporter:
    """Lines: one for each cell, and one now and then."""

    def __init__(self, console: Console):
        self._console = console
        self._clock = _Clock()
        self._next = 0.0

    def say(self, line: str) -> None:
        """Print it."""
        # No wrapping and no markup: a line of a log is one line, and a path may have brackets.
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def expect(self, seconds: Mapping[str, float], *, done: int, cells: int) -> None:
        """Remember it."""
        self._clock.expect(seconds, done, cells)

    def cell(self, cell: Cell, part: float, text: str) -> None:
        """Print what is done, if the last line is old enough."""
        self._clock.update(cell, part)
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PLAIN_INTERVAL
            self.say(f"{self._clock.part:4.0%}  {cell.id}: {text}  {duration(self._clock.left)} left")

    def cell_done(self, cell: Cell, result: Result) -> None:
        """Print what came out."""
        self._clock.update(cell, 1.0)
        self._clock.finished += 1
        self.say(
            f"[{self._clock.finished}/{self._clock.cells}] {cell.id}: {outcome(cell, result)}  "
            f"{duration(self._clock.left)} left"
        )

    def end(self) -> None:
        """Say nothing more."""


class RichReporter:
    """A bar for all, with time left; results stay above it as lines."""

    def __init__(self, console: Console):
        self._console = console
        self._clock = _Clock()
        self._now: dict[str, str] = {}
        self._progress = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[status]}"),
            console=console,
            refresh_per_second=4,
            transient=True,
        )
        self._task = self._progress.add_task("comparing", total=1.0, status="beginning")
        self._progress.start()

    def say(self, line: str) -> None:
        """Print it above the bar."""
        self._console.print(line, markup=False, highlight=False)

    def expect(self, seconds: Mapping[str, float], *, done: int, cells: int) -> None:
        """Begin the bar anew."""
        self._clock.expect(seconds, done, cells)

    def cell(self, cell: Cell, part: float, text: str) -> None:
        """Move the bar."""
        self._clock.update(cell, part)
        self._now[cell.id] = f"{cell.id} [bold]{part:.0%}[/] {text}"
        self._show()

    def cell_done(self, cell: Cell, result: Result) -> None:
        """Print what came out, and move the bar."""
        self._clock.update(cell, 1.0)
        self._clock.finished += 1
        self._now.pop(cell.id, None)
        self.say(f"{cell.id}: {outcome(cell, result)}")
        self._show()

    def end(self) -> None:
        """Take the bar away."""
        self._progress.stop()

    def _show(self) -> None:
        where = f"{self._clock.finished}/{self._clock.cells} · {duration(self._clock.left)} left"
        self._progress.update(
            self._task, completed=self._clock.part, status=" · ".join([where, *self._now.values()])
        )


def make_reporter(console: Console) -> CompareReporter:
    """The reporter that suits where the output goes."""
    return RichReporter(console) if console.is_terminal else PlainReporter(console)


def outcome(cell: Cell, result: Result) -> str:
    """What a cell came to, in a few words."""
    if result["status"] != "done":
        return f"{result['status']}: {result['reason']}"
    if cell.kind == "speed":
        speeds = [1 / seconds for seconds in result["seconds_per_token"].values()]
        return f"{min(speeds):,.0f} to {max(speeds):,.0f} tokens/s" if speeds else "nothing to train"
    if cell.kind == "text":
        if not result["contexts"]:
            return "no context could be tested"
        last = result["contexts"][-1]
        return (
            f"loss {last['loss']:.4f} ({last['bits_per_byte']:.4f} bits/byte) at context {last['context']}, "
            f"{result['tokens'] / max(result['seconds'], 1e-9):,.0f} tokens/s"
        )
    if cell.kind == "task":
        by_size: dict[int, list[float]] = {}
        for score in result["scores"]:
            by_size.setdefault(score["size"], []).append(score["answers"])
        shown = ", ".join(f"{size}: {fmean(parts):.0%}" for size, parts in by_size.items())
        return f"answers right by size: {shown}"
    if cell.kind == "training":
        return f"{result['tokens_per_second']:,.0f} tokens/s"
    done = [point for point in result["points"] if point["status"] == "done"]
    return ", ".join(f"{point['after']}: {point['seconds'] * 1e3:.2f} ms" for point in done) or "nothing"
