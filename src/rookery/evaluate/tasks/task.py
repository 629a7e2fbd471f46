"""What a generated task is: a function from (seed, index, size) to tokens and targets, and what is known."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rookery.train.data import IGNORED

__all__ = ["TEST_SEED", "Example", "Known", "Measure", "Task", "asked", "batch", "generator"]

# Seeds of training are small numbers that a person chose; the examples that all models are tested on have
# this one.
TEST_SEED = 2**31 - 1


class Example(NamedTuple):
    """One example."""

    tokens: np.ndarray
    """[T] int64, ids below the task's ``vocab_size``."""

    targets: np.ndarray
    """[T] int64: what is to be answered after each token, or ``IGNORED`` where nothing is asked."""


class Known(NamedTuple):
    """A result that was published, to stand beside ours."""

    result: str
    """What was found, and for which models."""

    source: str
    """Who published it."""


Measure = str
"""Which accuracy a task is judged by: "answers" (all that were asked), "last" (the last of each example), or
"whole" (examples with every answer right)."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task with its own vocabulary, learnt on small sizes and tested on larger ones."""

    name: str
    """As in ``TASKS``."""

    title: str
    """For people."""

    summary: str
    """What is given and what is asked, in a sentence or two."""

    vocab_size: int
    """N"""

    example: Callable[[int, int, int, float | None], Example]
    """(seed, index, size, depth) -> an example: the same one for the same arguments, always."""

    size_name: str
    """What ``size`` counts, such as "pairs"."""

    train_sizes: tuple[int, ...]
    """Sizes to learn from, drawn evenly."""

    test_sizes: tuple[int, ...]
    """Sizes to be tested on, from those of training upwards."""

    chance: float
    """The accuracy of guessing evenly among the possible answers."""

    test_examples: int = 128
    """How many examples are tested, of each size and depth."""

    measure: Measure = "answers"
    """Which accuracy is plotted."""

    depths: tuple[float, ...] = ()
    """Where in the sequence what is to be found lies, 0 the beginning and 1 the end, for each of which a test
    is made; empty where there is no such thing. In training the depth is drawn evenly."""

    weight: float = 1.0
    """The task's share of the time for tasks, relative to others: what is harder to learn gets more."""

    known: tuple[Known, ...] = ()
    """Published results."""


def generator(name: str, seed: int, index: int, size: int) -> np.random.Generator:
    """The random numbers of one example: a function of the task's name and these numbers alone."""
    return np.random.default_rng([zlib.crc32(name.encode()), seed, index, size])


def batch(
    task: Task, *, seed: int, first: int, count: int, size: int, depth: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Examples ``first .. first + count - 1`` of one size.

    Returns:
        Tokens and targets, each [B, T] int64. All examples of a size have one length.
    """
    examples = [task.example(seed, index, size, depth) for index in range(first, first + count)]
    return np.stack([e.tokens for e in examples]), np.stack([e.targets for e in examples])


def asked(targets: np.ndarray) -> np.ndarray:
    """Where an answer is asked for: bool of the same shape."""
    return targets != IGNORED
