"""Parity: after each bit, whether the number of ones so far is odd."""

from __future__ import annotations

import numpy as np

from rookery.evaluate.tasks.task import Example, Known, Task, generator

__all__ = ["PARITY"]


def _example(seed: int, index: int, size: int, depth: float | None) -> Example:
    bits = generator("parity", seed, index, size).integers(0, 2, size)
    return Example(bits, np.bitwise_xor.accumulate(bits))


PARITY = Task(
    name="parity",
    title="Parity",
    summary="Random bits; after each, whether the number of ones so far is odd. The accuracy is that of "
    "the last bit.",
    vocab_size=2,
    example=_example,
    size_name="bits",
    train_sizes=(32,),
    test_sizes=(8, 16, 32, 64, 128, 256),
    chance=0.5,
    measure="last",
    known=(
        Known(
            "Recurrent networks and LSTMs learn it for all lengths, transformers do not.",
            "Delétang et al. 2022, arXiv:2207.02098",
        ),
        Known(
            "Linear recurrences whose transitions have eigenvalues in [0, 1] cannot learn it; with "
            "negative ones they can.",
            "Grazzi et al. 2024, arXiv:2411.12537",
        ),
    ),
)
