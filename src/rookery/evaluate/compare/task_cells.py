"""A cell of a task: one model learns small sizes of one task, then is tested on larger ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from rookery.errors import ConfigError, StateError
from rookery.evaluate.compare.cells import Cell, CompareFolder, Result
from rookery.evaluate.compare.config import CompareConfig
from rookery.evaluate.compare.models import describe, make_model
from rookery.evaluate.compare.training import Interrupted, fit_model
from rookery.evaluate.tasks import TASKS, TEST_SEED, Task, asked, batch
from rookery.train.config import TrainConfig
from rookery.train.data import Rows

__all__ = ["run_task", "score_task", "task_config", "task_rows"]

# Tokens that a model reads in one call when it is tested, all rows together.
_CALL = 16384


def task_config(config: CompareConfig, *, tokens: int, seed: int, name: str) -> TrainConfig:
    """The recipe of a model of a task; a step has about ``task_batch_tokens`` tokens."""
    steps = -(-tokens // config.task_batch_tokens)
    return TrainConfig(
        data=(f"task {name}",),
        tokens=tokens,
        context=config.task_batch_tokens,
        batch=1,
        learning_rate=config.learning_rate,
        warmup_steps=min(config.warmup_steps, steps // 10),
        weight_decay=config.weight_decay,
        seed=seed,
        device="cpu",
    )


def task_rows(task: Task, step: int, *, seed: int, tokens: int) -> Rows:
    """The examples of a step: of one size, drawn anew at each step, and as many as make ``tokens`` tokens.

    A function of its arguments alone, so that every mixer sees the same examples in the same order.
    """
    size = int(np.random.default_rng([seed, step]).choice(task.train_sizes))
    length = len(task.example(seed, 0, size, None).tokens)
    count = max(tokens // length, 1)
    # No step uses as many examples, so that no example comes twice.
    return Rows(*batch(task, seed=seed, first=step * tokens, count=count, size=size), None)


@torch.no_grad()
def score_task(
    model: nn.Module,
    task: Task,
    *,
    size: int,
    depth: float | None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Accuracy at one size (and depth), on examples that are the same for all models.

    Returns:
        "answers": of all that was asked; "last": of the last answer of each example; "whole": of examples
        with every answer right; "examples": how many.

    Raises:
        Interrupted: it was stopped.
    """
    length = len(task.example(TEST_SEED, 0, size, depth).tokens)
    rows = max(_CALL // length, 1)
    right, wanted, last = [], [], []
    for first in range(0, task.test_examples, rows):
        if stopped():
            raise Interrupted
        count = min(rows, task.test_examples - first)
        tokens, targets = batch(task, seed=TEST_SEED, first=first, count=count, size=size, depth=depth)
        logits, _ = model(torch.from_numpy(tokens))
        scored = asked(targets)
        hits = (logits.argmax(-1).numpy() == targets) & scored
        right.append(hits.sum(1))
        wanted.append(scored.sum(1))
        at = scored.shape[1] - 1 - scored[:, ::-1].argmax(1)
        last.append(hits[np.arange(len(hits)), at])
    hits, total = np.concatenate(right), np.concatenate(wanted)
    return {
        "size": size,
        "depth": depth,
        "examples": task.test_examples,
        "answers": float(hits.sum() / total.sum()),
        "last": float(np.concatenate(last).mean()),
        "whole": float((hits == total).mean()),
    }


def run_task(
    folder: CompareFolder,
    config: CompareConfig,
    cell: Cell,
    *,
    tokens: int,
    progress: Callable[[float, str], None] = lambda part, text: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Result:
    """Train and test one model of one task.

    Raises:
        TrainingError: it diverged.
        Interrupted: it was stopped, and is saved.
    """
    task = TASKS[cell.subject]
    recipe = task_config(config, tokens=tokens, seed=cell.seed, name=task.name)
    model = make_model(config, cell.mixer, task.vocab_size, seed=cell.seed, task=True)
    history = fit_model(
        model,
        recipe,
        lambda step: task_rows(task, step, seed=cell.seed, tokens=config.task_batch_tokens),
        checkpoint=folder.checkpoint_path(cell),
        progress=lambda part, text: progress(0.8 * part, text),
        stopped=stopped,
    )
    scores, reasons = [], {}
    for number, size in enumerate(task.test_sizes):
        progress(0.8 + 0.2 * number / len(task.test_sizes), f"{size} {task.size_name}")
        try:
            scores += [
                score_task(model, task, size=size, depth=depth, stopped=stopped)
                for depth in task.depths or (None,)
            ]
        except (ConfigError, StateError) as error:
            # A mixer may have a longest context; it says so itself.
            reasons[str(size)] = str(error)
    return {
        "status": "done",
        **describe(model),
        "tokens": recipe.total_steps * recipe.tokens_per_step if recipe.total_steps else 0,
        "seconds": history.seconds,
        "scores": scores,
        "not_applicable": reasons,
        "losses": history.losses,
    }
