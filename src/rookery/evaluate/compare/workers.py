"""Cells in processes of their own: fresh memory for each, several at once, none that outlives the command.

A cell tells what it does over a pipe, writes its result itself, and is asked to stop by an event. It also
stops when the process that started it is gone.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from rookery.errors import RookeryError
from rookery.evaluate.compare.cells import Cell, CompareFolder, Result

__all__ = ["CellJob", "run_cells"]

# Seconds between two reports of a cell.
_REPORT_SECONDS = 0.2
# Seconds that cells have to save once they were asked to stop.
_GRACE = 60.0


@dataclass(frozen=True)
class CellJob:
    """One cell to be run."""

    cell: Cell
    folder: CompareFolder
    threads: int


def run_cells(
    jobs: Sequence[CellJob],
    *,
    at_once: int,
    progress: Callable[[Cell, float, str], None],
    done: Callable[[Cell, Result], None],
    stopped: Callable[[], bool],
) -> None:
    """Run cells, each in a fresh process, until all are done or it is stopped.

    Args:
        at_once: processes at a time.
        progress: is told of each cell which part is done, 0 to 1, and what it does.
        done: is given each result.
        stopped: asked several times a second; then cells save and end, and no new ones are begun.

    Raises:
        RuntimeError: there is a mistake in a cell; the message has its traceback.
    """
    context = _context()
    stop = context.Event()
    waiting = list(jobs)
    running: dict[Any, tuple[CellJob, Any]] = {}
    try:
        while running or (waiting and not stopped()):
            while waiting and len(running) < at_once and not stopped():
                job = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_main, args=(job, theirs, stop), daemon=True)
                process.start()
                theirs.close()
                running[ours] = job, process
            arrived: list[Any] = connection.wait(list(running), timeout=0.2)
            for ready in arrived:
                job, process = running[ready]
                try:
                    kind, *values = ready.recv()
                except (EOFError, OSError):
                    del running[ready]
                    ready.close()
                    _finish(job, process, done)
                    continue
                if kind == "progress":
                    progress(job.cell, *values)
                else:
                    raise RuntimeError(f"the cell {job.cell.id} failed:\n{values[0]}")
            if stopped() and not stop.is_set():
                stop.set()
    finally:
        for ours, (_, process) in running.items():
            process.terminate()
            process.join(_GRACE)
            ours.close()


def _finish(job: CellJob, process: Any, done: Callable[[Cell, Result], None]) -> None:
    process.join(_GRACE)
    code, result = process.exitcode, job.folder.result(job.cell)
    process.close()
    if result is not None:
        done(job.cell, result)
    elif code:
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        result = {"status": "failed", "reason": f"its process ended by {name}; was there too little memory?"}
        job.folder.write_result(job.cell, result)
        done(job.cell, result)


def _context() -> Any:
    # A server that has imported torch once forks a fresh process in milliseconds; where there is none, each
    # imports.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["rookery.evaluate.compare.perform"])
    return context


def _main(job: CellJob, pipe: connection.Connection, stop: Any) -> None:
    # Ctrl-C reaches all processes of a terminal; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from rookery.evaluate.compare.perform import perform
    from rookery.evaluate.compare.training import Interrupted

    torch.set_num_threads(job.threads)
    parent, last = multiprocessing.parent_process(), 0.0

    def progress(part: float, text: str) -> None:
        nonlocal last
        if time.monotonic() - last > _REPORT_SECONDS:
            last = time.monotonic()
            with suppress(OSError):
                pipe.send(("progress", part, text))

    def stopped() -> bool:
        return stop.is_set() or (parent is not None and not parent.is_alive())

    try:
        result = perform(job.folder, job.cell, threads=job.threads, progress=progress, stopped=stopped)
    except Interrupted:
        return
    except RookeryError as error:
        result = {"status": "failed", "reason": str(error)}
    except Exception:
        pipe.send(("broken", traceback.format_exc()))
        return
    job.folder.write_result(job.cell, result)
    job.folder.checkpoint_path(job.cell).unlink(missing_ok=True)
