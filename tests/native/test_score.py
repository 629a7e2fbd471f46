"""Log-probabilities from the engine against those of all logits, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from rookery import native
from rookery.checkpoints import Checkpoint
from rookery.config import VERSIONS, sized
from rookery.errors import ConfigError, StateError
from rookery.models import to_tensors
from rookery.native import NativeModel, _engine
from rookery.state import State, initial_state

VOCABULARY = 1203


@pytest.fixture(scope="session")
def scoring_model(random_model) -> Callable[..., NativeModel]:
    @cache
    def make(version: str, dtype: str = "float32", threads: int = 2, broken: bool = False) -> NativeModel:
        config = sized(version, vocab_size=VOCABULARY, width=64, num_layers=2)
        tensors = to_tensors(random_model(config))
        if broken:
            tensors["head.weight"] = np.full_like(tensors["head.weight"], np.nan)
        return native.load(Checkpoint(config=config, tensors=tensors), dtype=dtype, threads=threads)

    return make


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def log_probabilities(model: NativeModel, tokens: np.ndarray) -> np.ndarray:
    """[T, N] by the definition."""
    logits, _ = model.forward(tokens[None], initial_state(model.config))
    return log_softmax(logits[0])


def draw(count: int, targets: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    after = np.sort(rng.integers(0, count, targets))
    return rng.integers(0, VOCABULARY, count), np.stack([after, rng.integers(0, VOCABULARY, targets)], 1)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["float32", "q8"])
def test_targets_in_ragged_streams(scoring_model, version: str, dtype: str):
    model = scoring_model(version, dtype)
    # More rows than the head takes at a time, a stream without targets, several targets after one token.
    requests = [(3, *draw(401, 700, 1)), (0, *draw(7, 0, 2)), (4, *draw(1, 5, 3)), (1, *draw(130, 130, 4))]
    for _, tokens, targets in requests:
        wanted = log_probabilities(model, tokens)
        targets[::3, 1] = wanted.argmax(1)[targets[::3, 0]]
    pool = initial_state(model.config, 5)
    for (slot, tokens, targets), (found, likeliest) in zip(
        requests, model.score(requests, pool), strict=True
    ):
        wanted = log_probabilities(model, tokens)
        np.testing.assert_allclose(found, wanted[targets[:, 0], targets[:, 1]], atol=1e-5, rtol=0)
        np.testing.assert_array_equal(likeliest, wanted.argmax(1)[targets[:, 0]] == targets[:, 1])
        assert likeliest[::3].all()
        _, state = model.forward(tokens[None], initial_state(model.config))
        for part, reference in zip(pool, state, strict=True):
            np.testing.assert_allclose(part[:, slot], reference[:, 0], atol=1e-5, rtol=1e-5)


def test_more_streams_than_a_pass_has_tokens(scoring_model):
    """Passes are larger then, and the rows kept for the head are used up between them."""
    model = scoring_model("7")
    requests = [(slot, *draw(3, 3, slot)) for slot in range(300)]
    found = model.score(requests, initial_state(model.config, 300))
    together, _ = model.forward(
        np.stack([tokens for _, tokens, _ in requests]), initial_state(model.config, 300)
    )
    for (_, _, targets), (values, _), logits in zip(requests, found, together, strict=True):
        wanted = log_softmax(logits)[targets[:, 0], targets[:, 1]]
        np.testing.assert_allclose(values, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("instructions", _engine.available_instruction_sets())
def test_every_instruction_set_and_any_number_of_threads(scoring_model, instructions: str):
    before = _engine.instruction_set()
    _engine.force_instruction_set(instructions)
    try:
        request = (0, *draw(50, 80, 5))
        wanted = log_probabilities(scoring_model("4"), request[1])[request[2][:, 0], request[2][:, 1]]
        for threads in (1, 3):
            model = scoring_model("4", threads=threads)
            [(found, _)] = model.score([request], initial_state(model.config))
            np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)
    finally:
        _engine.force_instruction_set(before)


def test_nothing_to_do(scoring_model):
    model = scoring_model("7")
    pool = initial_state(model.config, 2)
    assert model.score([], pool) == []
    [(found, likeliest)] = model.score([(1, [1, 2, 3], np.empty((0, 2), np.int64))], pool)
    assert len(found) == len(likeliest) == 0
    assert pool.wkv[:, 1].any()
    assert not pool.wkv[:, 0].any()


@pytest.mark.parametrize(
    ("targets", "problem"),
    [
        ([[1, 5], [0, 5]], "must ascend"),
        ([[-1, 5]], "must ascend"),
        ([[3, 5]], "one of the 3 tokens"),
        ([[0, VOCABULARY]], "outside of the vocabulary"),
        ([[0, -1]], "outside of the vocabulary"),
        ([[0, 1, 2]], "shape"),
        ([0, 1], "shape"),
        ([[0.0, 1.0]], "integers"),
    ],
)
def test_targets_that_are_none(scoring_model, targets: list, problem: str):
    model = scoring_model("7")
    pool = initial_state(model.config)
    with pytest.raises(ConfigError, match=problem):
        model.score([(0, [1, 2, 3], np.array(targets))], pool)
    assert not pool.wkv.any()


def test_what_is_not_finite_is_said(scoring_model):
    request = (0, [1, 2, 3], np.array([[0, 1]]))
    with pytest.raises(StateError, match="the weights do"):
        scoring_model("7", broken=True).score([request], initial_state(scoring_model("7").config))
    pool = initial_state(scoring_model("7").config)
    pool.wkv[0, 0, 0, 0, 0] = np.nan
    with pytest.raises(StateError, match="holds NaN"):
        scoring_model("7").score([request], pool)


def test_the_extension_checks_what_it_is_given(scoring_model):
    """Its own checks keep it inside of the arrays, whatever calls it."""
    model = scoring_model("7")
    state: State[np.ndarray] = initial_state(model.config)
    one = np.zeros(1, np.int64)
    good = {
        "tokens": one,
        "counts": np.ones(1, np.int64),
        "slots": one,
        **state._asdict(),
        "rows": one,
        "targets": one,
        "log_probabilities": np.empty(1),
        "likeliest": np.empty(1, np.uint8),
        "logits": np.empty((1, VOCABULARY), np.float32),
    }
    assert model._model.score(**good) is None
    for name, value in {
        "rows": one + 1,
        "targets": one - 1,
        "log_probabilities": np.empty(2),
        "likeliest": np.empty(2, np.uint8),
        "logits": np.empty((0, VOCABULARY), np.float32),
        "tokens": one + VOCABULARY,
    }.items():
        with pytest.raises(ValueError, match=r"target|room|row|vocabulary"):
            model._model.score(**{**good, name: value})
