"""Dealing out the budget: from the measured speed of each mixer to a number of tokens, the same for all.

The minutes are shared among text, tasks and costs; a share that is not wanted goes to the others. All models
of text get as many tokens as fit into the share of text; a slow mixer takes longer for them, and is given no
fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rookery.errors import ConfigError
from rookery.evaluate.compare.cells import Cell, cells_of
from rookery.evaluate.compare.config import CompareConfig
from rookery.evaluate.tasks import TASKS, TEST_SEED, Task

__all__ = ["SHARES", "VALIDATIONS", "Plan", "make_plan", "task_test_tokens"]

SHARES = {"text": 0.5, "task": 0.3, "cost": 0.2}
"""Parts of the minutes."""

VALIDATIONS = 10
"""Validations of a training of text."""

# Of the minutes, what starting processes, reading data and drawing take.
_OVERHEAD = 0.08
# Seconds of a token that is only read, as a part of those of a token of training.
_READING = 0.4
# How much slower a process is while others run beside it.
_CROWDED = 1.2
_FEWEST_STEPS = 10
# Seconds that a cost measurement may take where the budget is in tokens, and the least where it is in
# minutes.
_TRAINING_LIMIT, _GENERATION_LIMIT = 30.0, 120.0
_LEAST_LIMIT = 2.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every cell gets."""

    text_tokens: int
    """Of each model of text."""

    task_tokens: dict[str, int]
    """Of each model of each task."""

    training_limit: float
    """Seconds that timing one length of training may take."""

    generation_limit: float
    """Seconds that one mixer may read for before generation is timed."""

    threads: int
    """Of torch, in a cell that runs alone."""

    seconds_per_token: dict[str, dict[str, float]]
    """Mixer -> "text" or task -> seconds of training, as measured before."""

    expected: dict[str, float]
    """Cell -> seconds of the clock that it is expected to take."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def make_plan(config: CompareConfig, speeds: Mapping[str, Mapping[str, float]], *, threads: int) -> Plan:
    """Deal out the budget.

    Args:
        speeds: mixer -> "text" or task -> seconds of a token of training; of a task, in a process of one
        thread. threads: cores: so many tasks are run at once.

    Raises:
        ConfigError: the minutes are too few for the least that makes sense.
    """
    wanted = {"text": bool(config.data), "task": bool(config.tasks), "cost": config.costs}
    whole = sum(SHARES[name] for name, is_wanted in wanted.items() if is_wanted)
    seconds = {
        name: 60 * (config.minutes or 0) * (1 - _OVERHEAD) * SHARES[name] / whole if is_wanted else 0.0
        for name, is_wanted in wanted.items()
    }
    text_second = (
        sum(speeds[mixer].get("text", 0.0) for mixer in config.mixers) * config.seeds * len(config.data)
    )
    task_second = {
        name: sum(speeds[mixer][name] for mixer in config.mixers) * config.task_seeds * _CROWDED / threads
        for name in config.tasks
    }
    tested = len(config.contexts) * config.valid_tokens + VALIDATIONS * config.valid_tokens // 4
    weights = {name: TASKS[name].weight for name in config.tasks}
    if config.tokens is not None:
        text_tokens = config.tokens
        task_tokens = dict.fromkeys(config.tasks, config.task_tokens or config.tokens)
    else:
        text_tokens = 0
        if config.data:
            text_tokens = _whole_steps(
                seconds["text"] / text_second - _READING * tested,
                config.batch * config.context,
                config,
                lacking="text",
            )
        task_tokens = {
            name: config.task_tokens
            or _whole_steps(
                seconds["task"] * weights[name] / sum(weights.values()) / task_second[name]
                - _READING * task_test_tokens(TASKS[name]),
                config.task_batch_tokens,
                config,
                lacking=f"the task {name}",
            )
            for name in config.tasks
        }
    each = seconds["cost"] / len(config.mixers)
    # Few mixers come near their limits: most of what is left over goes to one that does.
    training_limit = max(each / 2, _LEAST_LIMIT) if config.minutes else _TRAINING_LIMIT
    generation_limit = max(2 * each, _LEAST_LIMIT) if config.minutes else _GENERATION_LIMIT

    def expect(cell: Cell) -> float:
        speed = speeds[cell.mixer]
        if cell.kind == "text":
            return 2 + speed["text"] * (text_tokens + _READING * tested)
        if cell.kind == "task":
            count = task_tokens[cell.subject] + _READING * task_test_tokens(TASKS[cell.subject])
            return (1 + speed[cell.subject] * count * _CROWDED) / threads
        token = speed.get("text", 1e-4)
        if cell.kind == "training":
            return min(2 + 3 * token * cell.length, training_limit)
        return min(2 + _READING * token * config.generation_lengths[-1], generation_limit)

    return Plan(
        text_tokens=text_tokens,
        task_tokens=task_tokens,
        training_limit=training_limit,
        generation_limit=generation_limit,
        threads=threads,
        seconds_per_token={mixer: dict(speed) for mixer, speed in speeds.items()},
        expected={cell.id: expect(cell) for cell in cells_of(config) if cell.kind != "speed"},
    )


def task_test_tokens(task: Task) -> int:
    """Tokens that testing a task reads."""
    lengths = [len(task.example(TEST_SEED, 0, size, None).tokens) for size in task.test_sizes]
    return sum(lengths) * task.test_examples * max(len(task.depths), 1)


def _whole_steps(tokens: float, step: int, config: CompareConfig, *, lacking: str) -> int:
    steps = int(tokens // step)
    if steps < _FEWEST_STEPS:
        raise ConfigError(
            f"{config.minutes:g} minutes are too few: at the speeds measured, {lacking} would get "
            f"{max(steps, 0)} steps of {step} tokens, and {_FEWEST_STEPS} are the least; give more minutes, "
            "or fewer mixers, seeds, data or tasks, or a budget in --tokens"
        )
    return steps * step
