"""What a mixer costs by length: time and memory of a training step, and of one generated token."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rookery.errors import ConfigError, StateError
from rookery.evaluate.bench.memory import peak_bytes, reset_peak, resident_bytes
from rookery.evaluate.compare.cells import Cell, Result
from rookery.evaluate.compare.config import CompareConfig
from rookery.evaluate.compare.models import describe, make_model
from rookery.evaluate.compare.task_cells import task_config, task_rows
from rookery.evaluate.compare.text import train_config
from rookery.evaluate.compare.training import Interrupted, training_step
from rookery.evaluate.tasks import TASKS
from rookery.rivals import state_bytes
from rookery.train.data import Rows
from rookery.train.memory import keep_freed_memory
from rookery.train.optimizer import make_optimizer

__all__ = ["VOCAB", "measure_generation", "measure_speed", "measure_training", "weight_bytes"]

# Bytes: what a model of text has by default. The tokens are random; their values change no cost.
VOCAB = 256

# Tokens of what is run before memory is measured.
_FIRST = 16
# Measured steps of training, at most and in at most so many seconds; at least one.
_STEPS, _STEP_SECONDS = 5, 2.0
# Tokens that are read in one call before generation is timed, and tokens generated to time it.
_CHUNK, _TOKENS = 512, 24


def _rows(batch: int, length: int) -> Rows:
    tokens = torch.randint(VOCAB, (batch, length + 1), generator=torch.Generator().manual_seed(1)).numpy()
    return Rows(tokens[:, :-1], tokens[:, 1:], None)


def measure_speed(config: CompareConfig, cell: Cell, *, threads: int) -> Result:
    """Seconds of a training token, of a text and of each task, in the threads that each will have."""
    keep_freed_memory()
    seconds: dict[str, float] = {}
    if config.data:
        torch.set_num_threads(threads)
        model = make_model(config, cell.mixer, VOCAB, seed=0)
        recipe = train_config(config, tokens=1 << 30, seed=0, name="speed")
        rows = _rows(config.batch, config.context)
        seconds["text"] = _step_seconds(model, recipe, [rows] * 4) / recipe.tokens_per_step
    torch.set_num_threads(1)
    for name in config.tasks:
        task = TASKS[name]
        recipe = task_config(config, tokens=1 << 30, seed=0, name=name)
        model = make_model(config, cell.mixer, task.vocab_size, seed=0, task=True)
        steps = [task_rows(task, step, seed=0, tokens=config.task_batch_tokens) for step in range(4)]
        seconds[name] = _step_seconds(model, recipe, steps) / recipe.tokens_per_step
    return {"status": "done", "seconds_per_token": seconds}


def _step_seconds(model: Any, recipe: Any, steps: list[Rows]) -> float:
    optimizer, times = make_optimizer(model, recipe), []
    for rows in steps:
        began = time.perf_counter()
        training_step(model, optimizer, rows, recipe, rate=1e-4)
        times.append(time.perf_counter() - began)
    # The first one allocates.
    return statistics.median(times[1:])


def measure_training(
    config: CompareConfig, cell: Cell, *, limit: float, shorter: tuple[int, float] | None
) -> Result:
    """Time and peak memory of optimizer steps of one row of ``cell.length`` tokens, in a fresh process.

    Args:
        limit: seconds that the measurement may take.
        shorter: the next shorter length and its seconds a step, to foresee how long this will take.
    """
    if shorter is not None:
        length, seconds = shorter
        # As if the cost were quadratic in the worst case; two steps are made at least.
        foreseen = 2 * seconds * (cell.length / length) ** 2
        if foreseen > 2 * limit:
            return {
                "status": "skipped",
                "reason": f"a step may take {foreseen / 2:.0f} s, judged by {seconds:.2g} s at {length} "
                f"tokens; the limit is {limit:.0f} s",
            }
    keep_freed_memory()
    recipe = train_config(config, tokens=1 << 30, seed=0, name="cost")
    try:
        model = make_model(config, cell.mixer, VOCAB, seed=0)
        optimizer = make_optimizer(model, recipe)
        # A short step first: it touches the libraries' pages, and allocates gradients and moments.
        training_step(model, optimizer, _rows(1, _FIRST), recipe, rate=1e-4)
        before = resident_bytes()
        reset_peak()
        rows, times = _rows(1, cell.length), []
        began = time.perf_counter()
        while len(times) < 2 or (len(times) <= _STEPS and time.perf_counter() - began < _STEP_SECONDS):
            start = time.perf_counter()
            training_step(model, optimizer, rows, recipe, rate=1e-4)
            times.append(time.perf_counter() - start)
    except (ConfigError, StateError) as error:
        return {"status": "skipped", "reason": str(error)}
    # The first one allocates.
    seconds = statistics.median(times[1:])
    # Weights, gradients and two moments, which were there before.
    peak = _beyond(peak_bytes(), before, counted=4 * weight_bytes(model))
    return {
        "status": "done",
        **describe(model),
        "length": cell.length,
        "seconds": seconds,
        "steps": len(times) - 1,
        "tokens_per_second": cell.length / seconds,
        "peak_bytes": peak,
    }


@torch.inference_mode()
def measure_generation(
    config: CompareConfig,
    cell: Cell,
    *,
    limit: float,
    progress: Callable[[float, str], None] = lambda part, text: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Result:
    """Time of one more token, bytes of state and memory, after growing numbers of tokens, in one stream.

    Args:
        limit: seconds that reading all the tokens may take.

    Raises:
        Interrupted: it was stopped; it begins anew.
    """
    model = make_model(config, cell.mixer, VOCAB, seed=0)
    model(torch.zeros(1, _FIRST, dtype=torch.int64))
    before = resident_bytes()
    generator = torch.Generator().manual_seed(2)
    points: list[dict[str, Any]] = []
    state, seen, began = None, 0, time.perf_counter()
    chunk_seconds = 0.0
    for number, length in enumerate(config.generation_lengths):
        reason = None
        while seen < length and reason is None:
            if stopped():
                raise Interrupted
            count = min(_CHUNK, length - seen)
            spent = time.perf_counter() - began
            if spent + chunk_seconds * (length - seen) / _CHUNK > limit:
                reason = (
                    f"reading {length} tokens takes longer than the limit of {limit:.0f} s; {spent:.0f} s "
                    f"for {seen} tokens"
                )
                break
            start = time.perf_counter()
            try:
                tokens = torch.randint(VOCAB, (1, count), generator=generator)
                _, state = model(tokens, state, last_only=True)
            except (ConfigError, StateError, MemoryError, RuntimeError) as error:
                # torch raises RuntimeError where there is no memory for a tensor.
                reason = str(error)
                break
            chunk_seconds = time.perf_counter() - start
            seen += count
            progress(seen / config.generation_lengths[-1], f"{seen} tokens read")
        if reason is not None:
            points += [
                {"after": each, "status": "skipped", "reason": reason}
                for each in config.generation_lengths[number:]
            ]
            break
        try:
            points.append({"after": length, "status": "done", **_one_more(model, state, before)})
        except (ConfigError, StateError) as error:
            # The text just fits, and there is no place for one more token.
            points.append({"after": length, "status": "skipped", "reason": str(error)})
    return {"status": "done", **describe(model), "points": points}


def _one_more(model: Any, state: Any, before: int | None) -> dict[str, Any]:
    seconds, token = [], torch.zeros(1, 1, dtype=torch.int64)
    for _ in range(_TOKENS):
        start = time.perf_counter()
        # The state is not written into, so that every token is the one after the same text.
        model(token, state)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds),
        "state_bytes": state_bytes(state),
        "memory_bytes": _beyond(resident_bytes(), before, counted=weight_bytes(model)),
    }


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _beyond(now: int | None, before: int | None, *, counted: int) -> int | None:
    """What was counted, and what came on top of what was resident before; None where the system is silent."""
    return None if now is None or before is None else counted + max(now - before, 0)
