"""What each kind of cell does."""

from __future__ import annotations

from collections.abc import Callable

from rookery.evaluate.compare.cells import Cell, CompareFolder, Result, read_json
from rookery.evaluate.compare.config import CompareConfig
from rookery.evaluate.compare.costs import measure_generation, measure_speed, measure_training
from rookery.evaluate.compare.plan import Plan
from rookery.evaluate.compare.task_cells import run_task
from rookery.evaluate.compare.text import run_text

__all__ = ["perform"]


def perform(
    folder: CompareFolder,
    cell: Cell,
    *,
    threads: int,
    progress: Callable[[float, str], None] = lambda part, text: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Result:
    """Do what a cell is; returns its result, which is not written.

    Raises:
        RookeryError: it cannot be done, or training diverged.
        Interrupted: it was stopped.
    """
    config = folder.read_config()
    if cell.kind == "speed":
        return measure_speed(config, cell, threads=threads)
    plan = Plan(**read_json(folder.plan))
    hooks = {"progress": progress, "stopped": stopped}
    if cell.kind == "text":
        return run_text(folder, config, cell, tokens=plan.text_tokens, **hooks)
    if cell.kind == "task":
        return run_task(folder, config, cell, tokens=plan.task_tokens[cell.subject], **hooks)
    if cell.kind == "training":
        shorter = _shorter(folder, config, cell)
        return measure_training(config, cell, limit=plan.training_limit, shorter=shorter)
    return measure_generation(config, cell, limit=plan.generation_limit, **hooks)


def _shorter(folder: CompareFolder, config: CompareConfig, cell: Cell) -> tuple[int, float] | None:
    """The next shorter length at which the mixer was timed, and its seconds."""
    for length in reversed([n for n in config.training_lengths if n < cell.length]):
        result = folder.result(Cell(kind="training", mixer=cell.mixer, length=length))
        if result is not None and result["status"] == "done":
            return length, result["seconds"]
    return None
