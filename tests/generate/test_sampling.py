"""Sampling against a plain implementation, exact probabilities, and the samplers of two other packages."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rookery.errors import ConfigError, StateError
from rookery.generate import sampling
from rookery.generate.sampling import Sampler, SamplingParams

ALL = SamplingParams(top_p=1, seed=0)


def plain(
    logits: list[float], params: SamplingParams, observed: list[int], slack: float = 0
) -> dict[int, float]:
    """Steps 1 to 7 of the definition in plain Python; ``slack`` moves what top-p and min-p ask for."""
    counts: dict[int, float] = {}
    for token in observed:
        counts = {other: count * params.penalty_decay for other, count in counts.items()}
        counts[token] = counts.get(token, 0) + 1
    x = list(logits)
    for token, count in counts.items():
        r = params.repetition_penalty
        x[token] = x[token] / r if x[token] > 0 else x[token] * r
        x[token] -= params.presence_penalty + params.frequency_penalty * count
    for token in params.banned_tokens:
        x[token] = -math.inf
    top = max(x)
    if params.temperature == 0:
        return {x.index(top): 1.0}
    first = 1.0 if params.temperature_last else params.temperature
    w = {token: math.exp((value - top) / first) for token, value in enumerate(x)}
    ranked = sorted(w, key=lambda token: (-w[token], token))
    if params.top_k:
        ranked = ranked[: params.top_k]
    if params.top_p < 1:
        whole = math.fsum(w[token] for token in ranked)
        kept: list[int] = []
        while not kept or math.fsum(w[token] for token in kept) < (params.top_p + slack) * whole:
            if len(kept) == len(ranked):
                break
            kept.append(ranked[len(kept)])
        ranked = kept
    ranked = [token for token in ranked if w[token] >= params.min_p + slack or token == ranked[0]]
    if params.temperature_last:
        w = {token: math.exp((x[token] - top) / params.temperature) for token in ranked}
    whole = math.fsum(w[token] for token in ranked)
    return {token: w[token] / whole for token in sorted(ranked) if w[token] > 0}


def sampler_after(params: SamplingParams, observed: list[int]) -> Sampler:
    sampler = Sampler(params)
    for token in observed:
        sampler.observe(token)
    return sampler


def probabilities(sampler: Sampler, logits: Any) -> dict[int, float]:
    tokens, weights = sampler.candidates(np.asarray(logits, dtype=np.float32))
    assert (np.diff(tokens) > 0).all()
    whole = weights.sum()
    return {int(token): weight / whole for token, weight in zip(tokens, weights, strict=True) if weight > 0}


# Quarters are exact in float32, and make ties common.
LOGITS = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=1, max_size=24)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.one_of(st.just(0.0), st.just(1.0), st.floats(0.05, 5)),
    top_k=st.integers(0, 30),
    top_p=st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1)),
    min_p=st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1)),
    temperature_last=st.booleans(),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    penalty_decay=st.floats(0, 1),
    repetition_penalty=st.floats(0.5, 2),
    banned_tokens=st.lists(st.integers(0, 23), max_size=6).map(tuple),
    seed=st.integers(0, 2**64 - 1),
)


@settings(deadline=None, max_examples=400)
@given(LOGITS, PARAMS, st.lists(st.integers(0, 23), max_size=10), st.data())
def test_candidates_are_those_of_the_plain_implementation(
    logits: list[float], params: SamplingParams, observed: list[int], data: st.DataObject
) -> None:
    params = replace(params, banned_tokens=tuple(t for t in params.banned_tokens if t < len(logits)))
    assume(len(set(params.banned_tokens)) < len(logits))
    observed = [token for token in observed if token < len(logits)]
    sampler = sampler_after(params, observed)
    got = probabilities(sampler, logits)
    # Where a sum meets top_p exactly, rounding decides; then either answer is right.
    allowed = [plain(logits, params, observed, slack) for slack in (0, -1e-9, 1e-9)]
    assert got.keys() in [wanted.keys() for wanted in allowed]
    wanted = next(wanted for wanted in allowed if wanted.keys() == got.keys())
    assert got == pytest.approx(wanted, rel=1e-9)

    token = sampler.sample(np.array(logits, dtype=np.float32))
    assert type(token) is int
    assert token in got
    assert token not in params.banned_tokens


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.5},
        {"top_k": 4},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"top_k": 8, "top_p": 0.9, "min_p": 0.05, "temperature": 1.3},
        {"top_p": 0.7, "temperature": 2, "temperature_last": True},
        {"banned_tokens": (0, 5)},
        {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
    ],
)
def test_draws_have_the_exact_probabilities(options: dict[str, Any]) -> None:
    logits = np.random.default_rng(5).normal(size=12).astype(np.float32) * 1.5
    observed = [1, 2, 2, 7]
    params = replace(ALL, seed=11, **options)
    sampler = sampler_after(params, observed)
    draws = 20_000
    seen = Counter(sampler.sample(logits) for _ in range(draws))
    wanted = plain(logits.tolist(), params, observed)
    assert seen.keys() <= wanted.keys()
    chi_square = sum((seen[token] - draws * p) ** 2 / (draws * p) for token, p in wanted.items())
    # The chance of more than this is under 1e-4 for each number of degrees of freedom (Wilson and Hilferty).
    freedom = len(wanted) - 1
    assert freedom > 0
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


def test_a_large_vocabulary() -> None:
    rng = np.random.default_rng(0)
    for scale in (0.01, 1, 3, 10):
        logits = (rng.normal(size=65536) * scale).astype(np.float32)
        w = np.exp(logits.astype(np.float64) - logits.max())
        order = np.lexsort((np.arange(65536), -w))
        for top_p in (0.1, 0.5, 0.85, 0.999):
            count = int(np.searchsorted(np.cumsum(w[order]), top_p * w.sum())) + 1
            tokens, weights = Sampler(SamplingParams(top_p=top_p)).candidates(logits)
            assert tokens.tolist() == sorted(order[:count].tolist())
            np.testing.assert_allclose(weights, w[tokens], rtol=1e-12)
        for top_k in (1, 2, 50, 65535, 65536, 100_000):
            tokens, _ = Sampler(replace(ALL, top_k=top_k)).candidates(logits)
            assert tokens.tolist() == sorted(order[:top_k].tolist())


def test_equal_logits_rank_by_id() -> None:
    logits = np.array([0, 1, 1, 1, 0, 1], dtype=np.float32)
    assert Sampler(replace(ALL, temperature=0)).sample(logits) == 1
    assert Sampler(replace(ALL, top_k=1)).sample(logits) == 1
    assert Sampler(replace(ALL, top_k=3)).candidates(logits)[0].tolist() == [1, 2, 3]
    assert Sampler(replace(ALL, top_k=5)).candidates(logits)[0].tolist() == [0, 1, 2, 3, 5]
    assert Sampler(replace(ALL, top_p=0.3)).candidates(logits)[0].tolist() == [1, 2]
    assert Sampler(replace(ALL, top_p=0)).candidates(logits)[0].tolist() == [1]
    assert Sampler(replace(ALL, min_p=1)).candidates(logits)[0].tolist() == [1, 2, 3, 5]


@settings(deadline=None)
@given(LOGITS, st.integers(0, 2**64 - 1))
def test_top_k_1_is_greedy(logits: list[float], seed: int) -> None:
    x = np.array(logits, dtype=np.float32)
    greedy = Sampler(SamplingParams(temperature=0, seed=seed)).sample(x)
    assert greedy == int(x.argmax())
    assert Sampler(SamplingParams(top_k=1, seed=seed)).sample(x) == greedy
    assert Sampler(SamplingParams(top_p=0, seed=seed)).sample(x) == greedy
    assert Sampler(SamplingParams(temperature=1e-300, top_k=0, top_p=1, seed=seed)).sample(
        x
    ) in np.flatnonzero(x == x.max())


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.8])
@pytest.mark.parametrize("options", [{"top_p": 0.3}, {"top_p": 0.85}, {"top_k": 40, "top_p": 1.0}])
def test_temperature_last_is_what_the_rwkv_package_does(
    temperature: float, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from rwkv.utils import PIPELINE

    drawn: list[np.ndarray] = []
    monkeypatch.setattr(np.random, "choice", lambda a, p: drawn.append(p) or 0)
    logits = np.random.default_rng(3).normal(size=1000).astype(np.float32) * 2
    PIPELINE.sample_logits(None, torch.from_numpy(logits), temperature=temperature, **options)
    theirs = {token: float(p) for token, p in enumerate(drawn[0]) if p > 0}
    params = SamplingParams(temperature=temperature, temperature_last=True, **options)
    assert probabilities(Sampler(params), logits) == pytest.approx(theirs, rel=1e-4)


def test_the_repetition_penalty_divides_what_is_positive_and_multiplies_what_is_not() -> None:
    logits = np.array([3, 0.5, 0, -0.5, -3, 0])
    sampler = sampler_after(replace(ALL, repetition_penalty=2), [0, 1, 2, 3, 4])
    _, weights = sampler.candidates(logits)
    np.testing.assert_allclose(np.log(weights), np.array([1.5, 0.25, 0, -1, -6, 0]) - 1.5, atol=1e-12)


def test_penalties_are_what_the_rwkv_package_computes() -> None:
    presence, frequency, decay = 0.4, 0.3, 0.9
    observed = [3, 5, 3, 3, 1]
    occurrence: dict[int, float] = {}
    for token in observed:  # as rwkv.utils.PIPELINE.generate
        for other in occurrence:
            occurrence[other] *= decay
        occurrence[token] = occurrence.get(token, 0) + 1
    logits = np.zeros(8, dtype=np.float32)
    wanted = [
        -(presence + occurrence[token] * frequency) if token in occurrence else 0.0 for token in range(8)
    ]
    params = replace(ALL, presence_penalty=presence, frequency_penalty=frequency, penalty_decay=decay)
    tokens, weights = sampler_after(params, observed).candidates(logits)
    assert tokens.tolist() == list(range(8))
    np.testing.assert_allclose(np.log(weights), wanted, rtol=1e-12)


def test_the_default_order_is_that_of_transformers() -> None:
    import torch
    from transformers.generation import logits_process as theirs

    observed = [4, 9, 9, 30, 77]
    logits = np.random.default_rng(8).normal(size=300).astype(np.float32) * 2
    scores = torch.from_numpy(logits)[None]
    for step in (
        theirs.RepetitionPenaltyLogitsProcessor(1.3),
        theirs.TemperatureLogitsWarper(1.4),
        theirs.TopKLogitsWarper(60),
        theirs.TopPLogitsWarper(0.9),
        theirs.MinPLogitsWarper(0.05),
    ):
        scores = step(torch.tensor([observed]), scores)
    wanted = {token: p for token, p in enumerate(scores.softmax(-1)[0].tolist()) if p > 0}
    params = SamplingParams(temperature=1.4, top_k=60, top_p=0.9, min_p=0.05, repetition_penalty=1.3)
    assert 5 < len(wanted) < 50
    assert probabilities(sampler_after(params, observed), logits) == pytest.approx(wanted, rel=1e-4)


def test_the_presence_penalty_stays_and_the_frequency_penalty_fades() -> None:
    params = replace(ALL, presence_penalty=1, frequency_penalty=2, penalty_decay=0.5)
    sampler = sampler_after(params, [0])
    logits = np.zeros(4, dtype=np.float32)
    for step in range(1, 40):
        sampler.observe(1 + step % 3)
        _, weights = sampler.candidates(logits)
        untouched = max(weights)
        if step == 1:
            assert math.log(weights[0] / untouched) == pytest.approx(-1 - 2 * 0.5)
    slots = sampler.to_dict()
    assert slots["counts"][slots["tokens"].index(0)] == pytest.approx(0.5**39)
    sampler.params = replace(params, frequency_penalty=0, banned_tokens=(1, 2))
    tokens, weights = sampler.candidates(logits + np.array([0, 0, 0, 1], dtype=np.float32))
    assert weights[tokens == 0] == pytest.approx(math.exp(-1))


def test_numbers_are_those_of_splitmix64() -> None:
    # Published outputs for the seed 1234567.
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [sampling._uniform(1234567, step) for step in range(4)] == [(z >> 11) / 2**53 for z in outputs]
    assert 0 <= sampling._uniform(2**64 - 1, 2**40) < 1


def test_the_draw_is_the_inverse_of_the_running_sum() -> None:
    logits = np.log(np.array([1, 2, 3, 4], dtype=np.float64)).astype(np.float32)
    sampler = Sampler(replace(ALL, seed=1234567))
    for step in range(200):
        u = sampling._uniform(1234567, step)
        wanted = next(token for token, upto in enumerate([0.1, 0.3, 0.6, 1.0]) if u < upto)
        assert sampler.sample(logits) == wanted
    assert sampler.step == 200


def test_the_edges_of_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(logits: list[float], uniform: float) -> int:
        monkeypatch.setattr(sampling, "_uniform", lambda seed, step: uniform)
        return Sampler(ALL).sample(np.array(logits))

    last = 1 - 2**-53
    assert [draw([1, 1, 1, 1], u) for u in (0, 0.2, 0.25, 0.5, 0.75, last)] == [0, 0, 1, 2, 3, 3]
    assert [draw([-np.inf, 2, -np.inf, 2, -np.inf], u) for u in (0, 0.5, last)] == [1, 3, 3]


def test_the_same_seed_gives_the_same_tokens() -> None:
    logits = np.random.default_rng(1).normal(size=(50, 100)).astype(np.float32)

    def run(params: SamplingParams) -> list[int]:
        sampler = Sampler(params)
        tokens = []
        for row in logits:
            tokens.append(sampler.sample(row))
            sampler.observe(tokens[-1])
        return tokens

    params = SamplingParams(seed=7, frequency_penalty=0.5)
    assert run(params) == run(params)
    assert run(params) != run(replace(params, seed=8))
    assert run(replace(params, seed=None)) != run(replace(params, seed=None))


def test_one_number_a_token_whatever_the_parameters() -> None:
    logits = np.random.default_rng(1).normal(size=100).astype(np.float32)
    sampler = Sampler(SamplingParams(seed=7))
    other = Sampler(SamplingParams(seed=7))
    sampler.params = replace(sampler.params, temperature=0)
    sampler.sample(logits)
    sampler.params = other.params
    other.sample(logits)
    assert [sampler.sample(logits) for _ in range(20)] == [other.sample(logits) for _ in range(20)]


@pytest.mark.parametrize("way", ["fork", "saved"])
def test_a_copy_goes_on_exactly_and_by_itself(way: str) -> None:
    rows = np.random.default_rng(2).normal(size=(40, 60)).astype(np.float32)
    params = SamplingParams(
        seed=None, presence_penalty=0.3, frequency_penalty=0.3, banned_tokens=(3,), stop=("x",)
    )
    sampler = Sampler(params)
    for row in rows[:20]:
        sampler.observe(sampler.sample(row))
    if way == "fork":
        copy = sampler.fork()
    else:
        copy = Sampler.from_dict(json.loads(json.dumps(sampler.to_dict())))
        assert copy.params == params
    assert copy.to_dict() == sampler.to_dict()

    def finish(one: Sampler) -> list[int]:
        tokens = []
        for row in rows[20:]:
            tokens.append(one.sample(row))
            one.observe(tokens[-1])
        return tokens

    assert finish(sampler) == finish(copy)
    seen = sampler.to_dict()["tokens"]
    sampler.observe(100)
    copy.observe(101)
    copy.observe(100)
    assert sampler.to_dict()["tokens"] == [*seen, 100]
    assert copy.to_dict()["tokens"] == [*seen, 101, 100]
    assert sampler.to_dict()["counts"][-1] == 1


def test_a_fork_may_draw_otherwise() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    sampler = Sampler(SamplingParams(seed=1))
    fork = sampler.fork(seed=2)
    assert (sampler.seed, fork.seed) == (1, 2)
    assert [fork.sample(logits) for _ in range(5)] != [sampler.sample(logits) for _ in range(5)]
    with pytest.raises(ConfigError, match="seed"):
        sampler.fork(seed=-1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"banned_tokens": (2,)}])
def test_broken_logits_are_an_error(bad: float, options: dict[str, Any]) -> None:
    logits = np.zeros(5, dtype=np.float32)
    logits[2] = bad
    with pytest.raises(StateError, match=f"logit 2 of 5 is {bad}.*float32"):
        Sampler(SamplingParams(**options)).sample(logits)


@pytest.mark.parametrize("temperature", [0, 1])
def test_nothing_left_to_choose_is_an_error(temperature: float) -> None:
    sampler = Sampler(SamplingParams(banned_tokens=(0, 1, 2), temperature=temperature))
    with pytest.raises(ConfigError, match=r"no token is left .* 3 are banned"):
        sampler.sample(np.zeros(3, dtype=np.float32))
    with pytest.raises(ConfigError, match="no token is left"):
        Sampler(SamplingParams(temperature=temperature)).sample(np.full(3, -np.inf, dtype=np.float32))


def test_logits_of_minus_infinity_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0], dtype=np.float32)
    for options in ({}, {"top_k": 3}, {"top_p": 1.0}, {"temperature": 50.0, "temperature_last": True}):
        sampler = Sampler(replace(ALL, **options))
        assert {sampler.sample(logits) for _ in range(100)} == {1, 3}


def test_ids_outside_the_vocabulary_are_named() -> None:
    logits = np.zeros(10, dtype=np.float32)
    with pytest.raises(ConfigError, match="token 10 is banned, but the model has only 10"):
        Sampler(SamplingParams(banned_tokens=(10,))).sample(logits)
    with pytest.raises(ConfigError, match="token 12 is observed"):
        sampler_after(ALL, [12]).sample(logits)
    with pytest.raises(ConfigError, match="-1 is no token"):
        Sampler(ALL).observe(-1)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_logits_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="logits of one token"):
        Sampler(ALL).sample(np.zeros(shape, dtype=np.float32))


def test_logits_are_left_as_they_are() -> None:
    logits = np.random.default_rng(0).normal(size=50)
    before = logits.copy()
    sampler_after(replace(ALL, presence_penalty=1, banned_tokens=(1,), top_k=5), [2]).sample(logits)
    np.testing.assert_array_equal(logits, before)


@given(PARAMS)
def test_parameters_survive_json(params: SamplingParams) -> None:
    assert SamplingParams.from_dict(json.loads(json.dumps(params.to_dict()))) == params


@pytest.mark.parametrize(
    "change",
    [
        {"params": None},
        {"params": {"heat": 1}},
        {"seed": None},
        {"seed": -1},
        {"seed": 2**64},
        {"step": "x"},
        {"step": -1},
        {"tokens": [1, 1]},
        {"tokens": [1, 2, 3]},
        {"tokens": [-1, 2]},
        {"tokens": [[1, 2]]},
        {"counts": [1.0]},
        {"counts": ["x", 1.0]},
    ],
)
def test_a_broken_saved_sampler(change: dict[str, Any]) -> None:
    saved = sampler_after(ALL, [1, 2]).to_dict()
    Sampler.from_dict(saved)
    with pytest.raises(StateError, match="not the state of a sampler"):
        Sampler.from_dict(saved | change)
    with pytest.raises(StateError, match="not the state of a sampler"):
        Sampler.from_dict({key: value for key, value in saved.items() if key not in change})
