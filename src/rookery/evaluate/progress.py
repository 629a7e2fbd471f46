"""Progress of what takes long, with the time left: a bar on a terminal, a line now and then in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress"]

# Seconds between lines where there is no terminal.
_INTERVAL = 10.0


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error while this is open.

    Args:
        what: is going on.

    Yields:
        A function to be told how much is done, and of how much.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    # What is standard error now: while other libraries run, their output to it may be turned away.
    console = Console(file=sys.stderr)
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.percentage:3.0f}%"), TimeRemainingColumn())
    last = started = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int) -> None:
            nonlocal last
            bar.update(task, completed=done, total=total)
            now = time.monotonic()
            if not console.is_terminal and now - last >= _INTERVAL:
                last = now
                left = (now - started) / max(done, 1) * (total - done)
                line = f"{what}: {done / max(total, 1):.0%}, about {left:,.0f} s left"
                console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield advance
