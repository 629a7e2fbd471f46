"""Training one model of a comparison: the optimizer, schedule and loss of ``rookery train``, resumable.

Every mixer gets the same rows in the same order. What is kept in the checkpoint is all that is needed to go
on exactly.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rookery.errors import TrainingError
from rookery.files import atomic_write
from rookery.train.config import TrainConfig
from rookery.train.data import IGNORED, Rows
from rookery.train.evaluate import on_device
from rookery.train.loss import cross_entropy, l2wrap
from rookery.train.memory import keep_freed_memory
from rookery.train.optimizer import clip_gradients, make_optimizer, set_learning_rate
from rookery.train.schedule import learning_rate

__all__ = ["CPU", "History", "Interrupted", "fit_model", "training_step"]

CPU = torch.device("cpu")

# Seconds between checkpoints: what a kill costs at most.
SAVE_SECONDS = 20.0


class Interrupted(Exception):  # noqa: N818 - no error: the cell was asked to stop, and has saved
    """The cell was stopped, and is saved."""


@dataclass
class History:
    """What is remembered of a training."""

    losses: list[float] = field(default_factory=list)
    """Nats per predicted token of the rows of each step, before the step."""

    step_seconds: list[float] = field(default_factory=list)
    """Seconds of training after each step: steps alone, no validations and no checkpoints."""

    validations: list[dict[str, float]] = field(default_factory=list)
    """"step", "seconds" and "loss" of each validation."""

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self.step_seconds[-1] if self.step_seconds else 0.0


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, rows: Rows, config: TrainConfig, *, rate: float
) -> tuple[float, float]:
    """One optimizer step; returns the loss (nats per predicted token) and the norm of the gradient.

    If either is not finite, the weights are as they were before.
    """
    inputs, targets, starts = on_device(rows, CPU)
    set_learning_rate(optimizer, rate)
    optimizer.zero_grad()
    logits, _ = model(inputs, starts=starts)
    loss = cross_entropy(logits, targets) / int((rows.targets != IGNORED).sum())
    l2wrap(loss, logits, positions=inputs.numel()).backward()
    gradient = clip_gradients(model.parameters(), config.clip)
    value = float(loss.detach())
    if math.isfinite(value) and math.isfinite(gradient):
        optimizer.step()
    return value, gradient


def fit_model(
    model: nn.Module,
    config: TrainConfig,
    rows: Callable[[int], Rows],
    *,
    checkpoint: Path,
    validate_at: frozenset[int] = frozenset(),
    validate: Callable[[], float] | None = None,
    progress: Callable[[float, str], None] = lambda part, text: None,
    stopped: Callable[[], bool] = lambda: False,
) -> History:
    """Train a model in place until its budget is spent, going on from the checkpoint if there is one.

    Args:
        rows: of a step, counted from 0; a function of the step alone.
        checkpoint: file to save to, now and then, when stopped, and at the end.
        validate_at: numbers of steps after which to validate.
        validate: gives the loss.
        progress: is told which part is done, 0 to 1, and the loss.
        stopped: asked after each step.

    Raises:
        TrainingError: the loss or the gradient is not finite.
        Interrupted: it was stopped, and is saved.
    """
    assert config.total_steps is not None
    keep_freed_memory()
    optimizer = make_optimizer(model, config)
    history = _resume(checkpoint, model, optimizer)
    saved = time.perf_counter()
    while (step := len(history.losses)) < config.total_steps:
        began = time.perf_counter()
        rate = learning_rate(config, step=step, spent=step / config.total_steps)
        loss, norm = training_step(model, optimizer, rows(step), config, rate=rate)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
            raise TrainingError(
                f"step {step + 1}: the {what} is {value}: it diverged; try a smaller learning rate"
            )
        now = time.perf_counter()
        history.step_seconds.append(history.seconds + now - began)
        history.losses.append(loss)
        done = step + 1
        progress(done / config.total_steps, f"loss {loss:.3f}")
        if validate is not None and done in validate_at:
            history.validations.append({"step": done, "seconds": history.seconds, "loss": validate()})
        halt = stopped()
        if halt or done == config.total_steps or now - saved > SAVE_SECONDS:
            _save(checkpoint, model, optimizer, history)
            saved = time.perf_counter()
        if halt and done < config.total_steps:
            raise Interrupted
    return history


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, history: History) -> None:
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": vars(history)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        torch.save(content, file)


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> History:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, EOFError, RuntimeError, pickle.UnpicklingError):
        # There is none yet; or it is broken, and beginning anew costs less than asking.
        return History()
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return History(**content["history"])
