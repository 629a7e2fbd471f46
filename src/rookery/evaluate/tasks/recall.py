"""Multi-query associative recall (MQAR).

    k1 v1 k2 v2 ... kn vn | k3 . . k1 . k2 ...        after each key of the second part: its value

The layout is that of Arora et al., "Zoology" (arXiv:2312.04927): keys from one half of the
vocabulary, without repetition, values from the other; each key is asked for once, at a distance drawn from a
power law. Between the queries there is a filler, and nothing is asked.
"""

from __future__ import annotations

import numpy as np

from rookery.evaluate.tasks.task import Example, Known, Task, generator
from rookery.train.data import IGNORED

__all__ = ["FILLER", "KEYS", "MQAR", "VALUES"]

FILLER = 0
KEYS = range(1, 64)
VALUES = range(64, 128)

# The power law of the distances (Zoology: 0.01), and how many places there are for each query.
_POWER = 0.01
_PLACES = 3


def _example(seed: int, index: int, size: int, depth: float | None) -> Example:
    random = generator("mqar", seed, index, size)
    keys = random.choice(np.arange(KEYS.start, KEYS.stop), size, replace=False)
    values = random.choice(np.arange(VALUES.start, VALUES.stop), size)
    places = np.arange(1, _PLACES * size + 1)
    likely = _POWER * places ** (_POWER - 1)
    # Every query takes two tokens, the key and what would be its answer.
    at = 2 * size + 2 * random.choice(len(places), size, replace=False, p=likely / likely.sum())
    tokens = np.full(2 * size * (1 + _PLACES), FILLER)
    tokens[0 : 2 * size : 2] = keys
    tokens[1 : 2 * size : 2] = values
    targets = np.full(len(tokens), IGNORED)
    tokens[at] = keys
    targets[at] = values
    return Example(tokens, targets)


MQAR = Task(
    name="mqar",
    title="Multi-query associative recall",
    summary="Pairs of a key and a value, then the keys again in another order, at random distances: what "
    "was the value of each? Every sequence has eight tokens for each pair.",
    vocab_size=VALUES.stop,
    example=_example,
    size_name="pairs",
    train_sizes=(2, 4, 8),
    test_sizes=(2, 4, 8, 16, 32),
    chance=1 / len(VALUES),
    weight=2.0,
    known=(
        Known(
            "Attention solves it at any width; recurrent models need a state that grows with the number "
            "of pairs.",
            "Arora et al. 2023, Zoology, arXiv:2312.04927",
        ),
    ),
)
