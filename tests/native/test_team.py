"""The threads: any number of them, one call after another, computes the same."""

from __future__ import annotations

import os
from threading import Thread

import numpy as np
import pytest

from rookery.native import _engine

THREADS = [1, 2, 256, 2, 3, 1, 64, 256, 7]


def make() -> tuple[_engine.Matrix, np.ndarray]:
    rng = np.random.default_rng(0)
    rows, columns = 300, 64
    weights = rng.standard_normal((rows, columns)).astype(np.float32)
    matrix = _engine.Matrix(
        _engine.Arena(),
        weights.reshape(-1).view(np.uint8),
        source="float32",
        rows=rows,
        columns=columns,
        type="float32",
    )
    return matrix, rng.standard_normal((5, columns)).astype(np.float32)


def test_few_threads_after_many():
    matrix, x = make()
    wanted = matrix.multiply(x, threads=1)
    for threads in THREADS:
        np.testing.assert_array_equal(matrix.multiply(x, threads=threads), wanted)


def test_several_callers_at_once():
    matrix, x = make()
    wanted = matrix.multiply(x, threads=1)
    results: list[list[np.ndarray]] = [[] for _ in range(4)]

    def call(mine: list[np.ndarray]) -> None:
        mine.extend(matrix.multiply(x, threads=2 + n % 3) for n in range(20))

    callers = [Thread(target=call, args=(mine,)) for mine in results]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for mine in results:
        assert len(mine) == 20
        for y in mine:
            np.testing.assert_array_equal(y, wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_child_of_a_fork_has_threads_of_its_own():
    matrix, x = make()
    wanted = matrix.multiply(x, threads=3)
    child = os.fork()
    if child == 0:
        same = False
        try:
            same = np.array_equal(matrix.multiply(x, threads=3), wanted)
        finally:
            os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(matrix.multiply(x, threads=3), wanted)
