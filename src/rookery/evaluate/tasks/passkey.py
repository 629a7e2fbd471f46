"""A passkey in a haystack.

    . . . KEY 4 0 7 1 . . . . . . QUERY 4 0 7        after QUERY and each digit: the next digit of the key

The filler is random words of a vocabulary that has no digits, so that the key is the only thing worth
keeping.
"""

from __future__ import annotations

import numpy as np

from rookery.evaluate.tasks.task import Example, Known, Task, generator
from rookery.train.data import IGNORED

__all__ = ["DIGITS", "KEY", "KEY_LENGTH", "PASSKEY", "QUERY", "WORDS"]

WORDS = range(16)
DIGITS = range(16, 26)
KEY, QUERY = 26, 27
KEY_LENGTH = 4


def _example(seed: int, index: int, size: int, depth: float | None) -> Example:
    random = generator("passkey", seed, index, size)
    digits = random.integers(DIGITS.start, DIGITS.stop, KEY_LENGTH)
    words = random.integers(WORDS.start, WORDS.stop, size - 2 * KEY_LENGTH - 1)
    where = random.random() if depth is None else depth
    before = round(where * len(words))
    tokens = np.concatenate([words[:before], [KEY], digits, words[before:], [QUERY], digits[:-1]])
    targets = np.full(size, IGNORED)
    targets[-KEY_LENGTH:] = digits
    return Example(tokens, targets)


PASSKEY = Task(
    name="passkey",
    title="Passkey in a haystack",
    summary="Four digits somewhere in random words, to be repeated at the end. An answer counts if all "
    "four are right.",
    vocab_size=QUERY + 1,
    example=_example,
    size_name="tokens",
    train_sizes=(32, 64, 128),
    test_sizes=(64, 128, 256, 512, 1024, 2048),
    chance=len(DIGITS) ** -KEY_LENGTH,
    measure="whole",
    test_examples=20,
    depths=(0.0, 0.25, 0.5, 0.75, 1.0),
    known=(
        Known(
            "The pretrained RWKV-7 models of 1.5B and 2.9B parameters, trained on 4096 tokens, retrieve a "
            "passkey (a task of Mohtashami and Jaggi 2023, arXiv:2305.16300) from several times that "
            "length.",
            "Peng et al. 2025, arXiv:2503.14456",
        ),
    ),
)
