"""What all benchmarks share: figures with their bounds, a table, a JSON file, honest timing."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rookery.evaluate.machine import installed_versions, processor
from rookery.files import atomic_write

__all__ = [
    "Figure",
    "add_report_arguments",
    "interleaved",
    "interleaved_medians",
    "machine",
    "print_figures",
    "quotient",
    "write_figures",
    "write_markdown",
]


_MARK = "<!-- table -->"


@dataclass(frozen=True)
class Figure:
    """One measured figure, and the bound it is held against, if there is one."""

    figure: str
    value: float
    unit: str
    bound: float | None = None
    at_most: bool = False
    failed: str | None = None
    """Why there is no value, where measuring it failed; the value is nan then, and no bound holds."""

    @property
    def holds(self) -> bool | None:
        """Whether the bound holds; None without a bound."""
        if self.bound is None:
            return None
        if self.failed is not None:
            return False
        return self.value <= self.bound if self.at_most else self.value >= self.bound


def interleaved(
    sides: Mapping[str, Callable[[], float]], *, rounds: int, warm_up: int = 1, pause: float = 0.0
) -> dict[str, list[float]]:
    """What each side measured in each round; they run in turn (A B A B ...), so a drifting machine hits all.

    Args:
        sides: what measures, and returns what it measured; by name.
        rounds: that count.
        warm_up: rounds before them.
        pause: seconds before each side, in which the threads of the one before fall asleep.
    """
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for count in range(warm_up + rounds):
        for name, side in sides.items():
            time.sleep(pause)
            value = side()
            if count >= warm_up:
                measured[name].append(value)
    return measured


def quotient(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """The median of the quotients of what two sides measured in the same round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def interleaved_medians(
    sides: Sequence[Callable[[], object]], *, repeats: int, warm_up: int = 1
) -> list[float]:
    """Median seconds of each side, run in turn."""

    def timed(side: Callable[[], object]) -> Callable[[], float]:
        def seconds() -> float:
            start = time.perf_counter()
            side()
            return time.perf_counter() - start

        return seconds

    named = {str(index): timed(side) for index, side in enumerate(sides)}
    measured = interleaved(named, rounds=repeats, warm_up=warm_up)
    return [statistics.median(each) for each in measured.values()]


def machine(peers: Sequence[str] = ()) -> dict[str, object]:
    """The machine, and the versions of what was measured."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": installed_versions(("rookery", "torch", "numpy", *peers)),
    }


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every benchmark."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")


def _cells(each: Figure) -> tuple[str, str, str, str, str]:
    """One figure as it is shown."""
    sign = "≤" if each.at_most else "≥"
    bound = "" if each.bound is None else f"{sign} {each.bound:.3g}"
    holds = {True: "yes", False: "NO", None: ""}[each.holds]
    value = f"{each.value:,.0f}" if abs(each.value) >= 1000 else f"{each.value:.3g}"
    return each.figure, "failed" if each.failed else value, each.unit, bound, holds


def print_figures(title: str, figures: Sequence[Figure]) -> None:
    """The table of the figures that have a bound, then of the rest; then why some have no value."""
    table = Table(title=title, title_justify="left")
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("bound", justify="right", no_wrap=True)
    table.add_column("holds", no_wrap=True)
    for each in figures:
        table.add_row(*_cells(each))
    console = Console()
    # A file has room for whole lines, and no width.
    console = console if console.is_terminal else Console(width=140)
    console.print(table)
    for each in figures:
        if each.failed:
            console.print(f"{each.figure}: {each.failed}", markup=False, highlight=False)


def write_figures(
    path: Path | None,
    figures: Sequence[Figure],
    peers: Sequence[str] = (),
    facts: Mapping[str, object] | None = None,
) -> None:
    """Write the figures, the machine and the peers' versions as JSON, if a path is given.

    Args:
        path: of the file, or None.
        figures: one that failed has the value null, and the reason as "failed".
        peers: packages whose versions stand beside those of rookery, torch and numpy.
        facts: what else is known of the machine and of how it was measured.
    """
    if path is None:
        return
    with atomic_write(path) as file:
        written = {"machine": machine(peers) | dict(facts or {}), "figures": [_row(each) for each in figures]}
        file.write(json.dumps(written, indent=1).encode())


def _row(each: Figure) -> dict[str, object]:
    """One figure as it is written: JSON has no nan."""
    row: dict[str, object] = {
        key: value for key, value in asdict(each).items() if key not in ("at_most", "failed")
    }
    if each.failed is not None:
        row |= {"value": None, "failed": each.failed}
    return row | {"holds": each.holds}


def write_markdown(path: Path, figures: Sequence[Figure], peers: Sequence[str] = ()) -> None:
    """Put the table of the figures, and the machine, into a page, between its marks ``<!-- table -->``.

    Raises:
        ValueError: the page has not two of the marks.
    """
    before, _, rest = path.read_text().partition(_MARK)
    _, _, after = rest.partition(_MARK)
    if not after:
        raise ValueError(f"{path} has not two marks {_MARK} for the table to stand between")
    rows = [("figure", "value", "unit", "bound", "holds"), ("---", "---:", "---", "---:", "---")]
    rows += [_cells(each) for each in figures]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    with atomic_write(path) as file:
        file.write(f"{before}{_MARK}\n{table}\n{_described(peers)}\n{_MARK}{after}".encode())


def _described(peers: Sequence[str]) -> str:
    """The machine and the versions in one line."""
    facts = machine(peers)
    versions = facts["versions"]
    assert isinstance(versions, dict)
    present = [f"{name} {number}" for name, number in versions.items() if number is not None]
    return f"{facts['cpu']}, {facts['cores']} cores; {', '.join(present)}; Python {facts['python']}."
