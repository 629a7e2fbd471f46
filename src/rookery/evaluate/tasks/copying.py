"""Copying and reversal of digits.

3 1 4 NOW 3 1        after NOW and each digit: the next digit of the copy (3 1 4) or of the reversal (4 1 3)
"""

from __future__ import annotations

from functools import partial

import numpy as np

from rookery.evaluate.tasks.task import Example, Known, Task, generator
from rookery.train.data import IGNORED

__all__ = ["COPY", "DIGITS", "NOW", "REVERSE"]

DIGITS = range(10)
NOW = 10


def _example(name: str, step: int, seed: int, index: int, size: int, depth: float | None) -> Example:
    digits = generator(name, seed, index, size).integers(DIGITS.start, DIGITS.stop, size)
    answer = digits[::step]
    tokens = np.concatenate([digits, [NOW], answer[:-1]])
    targets = np.concatenate([np.full(size, IGNORED), answer])
    return Example(tokens, targets)


def _task(name: str, step: int, title: str, summary: str, known: tuple[Known, ...]) -> Task:
    return Task(
        name=name,
        title=title,
        summary=summary,
        vocab_size=NOW + 1,
        example=partial(_example, name, step),
        size_name="digits",
        train_sizes=(4, 8, 12, 16),
        test_sizes=(4, 8, 16, 24, 32, 64),
        chance=1 / len(DIGITS),
        known=known,
    )


COPY = _task(
    "copy",
    1,
    "Copying",
    "Random digits, then the same digits again.",
    (
        Known(
            "Transformers copy strings longer than those of training better than state-space models, "
            "whose state is of fixed size.",
            "Jelassi et al. 2024, Repeat After Me, arXiv:2402.01032",
        ),
    ),
)

REVERSE = _task(
    "reverse",
    -1,
    "Reversal",
    "Random digits, then the same digits backwards.",
    (
        Known(
            "RWKV-7 (2 layers, 32 wide, heads of 16) reverses numbers of 1 to 60 digits near-perfectly "
            "after 10,000 steps of 256 x 129 tokens.",
            "RWKV-LM, published with the training code",
        ),
    ),
)
