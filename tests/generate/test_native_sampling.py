"""Sampling in C++ against the definition in numpy, under every instruction set of the machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rookery.errors import ConfigError, StateError
from rookery.generate.sampling import Sampler, SamplingParams, sample_batch
from rookery.native import _engine

VOCABULARIES = [1, 2, 15, 16, 17, 63, 64, 65, 300, 1000, 5003]


@pytest.fixture(params=_engine.available_instruction_sets())
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _engine.instruction_set()
    _engine.force_instruction_set(request.param)
    yield request.param
    _engine.force_instruction_set(before)


def make_logits(kind: str, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    match kind:
        case "peaked":
            x = x * 3 - 12
            x[rng.integers(n)] = 8
        case "trained":
            x = x * 3
        case "flat":
            x = x * 0.01
        case "equal":
            x = np.full(n, -2.5)
        case "ties":
            x = np.round(x * 2)
        case "zeros":
            x = rng.choice([-0.0, 0.0, -1e-40, 1e-40], size=n)
        case "wide":
            x = x * 1e6
        case "half banned":
            x[rng.random(n) < 0.5] = -np.inf
    if n > 1 and kind != "equal":
        x[rng.integers(1, n)] = -np.inf
        x[0] = max(x[0], -1.0)
    return x.astype(np.float32)


KINDS = ["peaked", "trained", "flat", "equal", "ties", "zeros", "wide", "half banned"]

PARAMS = st.builds(
    SamplingParams,
    temperature=st.one_of(st.sampled_from([0.0, 1.0, 1e-300, 5e-324, 1e300]), st.floats(0.05, 5)),
    top_k=st.one_of(st.just(0), st.sampled_from([1, 2, 7, 40, 299, 10**30]), st.integers(0, 6000)),
    top_p=st.one_of(st.sampled_from([0.0, 0.5, 0.85, 1.0]), st.floats(0, 1)),
    min_p=st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1)),
    temperature_last=st.booleans(),
    presence_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    penalty_decay=st.floats(0, 1),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
    banned_tokens=st.lists(st.integers(0, 6000), max_size=6).map(tuple),
    seed=st.integers(0, 2**64 - 1),
)


def sampler_after(params: SamplingParams, observed: list[int]) -> Sampler:
    sampler = Sampler(params)
    for token in observed:
        sampler.observe(token)
    return sampler


def native_weights(sampler: Sampler, logits: np.ndarray) -> np.ndarray:
    weights = _engine.candidate_weights(logits, sampler._stream())
    assert isinstance(weights, np.ndarray)
    return weights


def reference_weights(sampler: Sampler, logits: np.ndarray) -> np.ndarray:
    tokens, weights = sampler.candidates(logits)
    whole = np.zeros(len(logits))
    whole[tokens] = weights
    return whole


def assert_equal_weights(sampler: Sampler, logits: np.ndarray) -> None:
    """The same ids, and weights within 1e-12; those under 2**-1022 count as 0."""
    wanted, got = reference_weights(sampler, logits), native_weights(sampler, logits)
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-300)


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(VOCABULARIES),
    st.integers(0, 999),
    PARAMS,
    st.lists(st.integers(0, 6000)),
)
def test_candidates_are_those_of_the_definition(
    near: Callable[[SamplingParams, float], SamplingParams],
    kind: str,
    n: int,
    seed: int,
    params: SamplingParams,
    observed: list[int],
) -> None:
    logits = make_logits(kind, n, seed)
    params = replace(params, banned_tokens=tuple(t for t in params.banned_tokens if t < n))
    allowed = np.ones(n, dtype=bool)
    allowed[list(params.banned_tokens)] = False
    assume((logits[allowed] > -np.inf).any())
    sampler = sampler_after(params, [token for token in observed if token < n])
    got = native_weights(sampler, logits)
    for slack in (0, 1e-12, -1e-12):
        sampler.params = near(params, slack)
        wanted = reference_weights(sampler, logits)
        if np.array_equal(wanted > 1e-300, got > 1e-300):
            break
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-300)
    token = sampler_after(params, [token for token in observed if token < n]).sample(logits)
    assert got[token] > 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_p": 1.0},
        {"top_p": 0.3, "temperature": 0.7},
        {"top_p": 0.999, "temperature": 1.7},
        {"top_k": 40, "top_p": 1.0},
        {"top_k": 600, "top_p": 0.9},
        {"top_k": 40_000, "top_p": 1.0},
        {"min_p": 0.05, "top_p": 1.0},
        {"temperature_last": True, "temperature": 2.0, "top_p": 0.5, "min_p": 0.01},
        {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        {"temperature": 0.0},
        {"temperature": 0.0, "frequency_penalty": 1.0, "banned_tokens": (0, 3)},
    ],
)
def test_a_large_vocabulary(instructions: str, options: dict[str, Any]) -> None:
    params = SamplingParams(seed=3, **options)
    for seed, kind in enumerate(KINDS):
        logits = make_logits(kind, 65536, seed)
        sampler = sampler_after(params, [*np.argsort(logits)[-40:].tolist(), 1, 1, 2])
        assert_equal_weights(sampler, logits)
        native, reference = sampler.fork(), sampler.fork()
        for _ in range(3):
            wanted = reference.sample(logits, implementation="reference")
            assert native.sample(logits) == wanted
            native.observe(wanted)
            reference.observe(wanted)
        assert native.to_dict() == reference.to_dict()


@pytest.mark.parametrize("n", VOCABULARIES)
def test_every_length_of_a_row(instructions: str, n: int) -> None:
    """Registers hold 2 to 16 numbers, and what is left over is computed as well."""
    for seed, kind in enumerate(KINDS):
        logits = make_logits(kind, n, seed)
        for options in ({"top_p": 0.7}, {"top_k": 1 + n // 2}, {"temperature": 0.0}):
            assert_equal_weights(Sampler(SamplingParams(seed=seed, **options)), logits)
        assert Sampler(SamplingParams(temperature=0)).sample(logits) == int(logits.argmax())


def test_long_runs_draw_the_same_tokens() -> None:
    rng = np.random.default_rng(0)
    params = SamplingParams(
        seed=2**64 - 5, temperature=1.2, top_p=0.95, frequency_penalty=0.4, presence_penalty=0.2
    )
    native, reference = Sampler(params), Sampler(params)
    drawn = set()
    for step in range(4000):
        logits = (rng.normal(size=1500) * (1 + step % 4)).astype(np.float32)
        token = native.sample(logits)
        assert token == reference.sample(logits, implementation="reference")
        native.observe(token)
        reference.observe(token)
        drawn.add(token)
    assert len(drawn) > 500
    assert native.to_dict() == reference.to_dict()


def test_a_likeliest_that_rounding_hides() -> None:
    """exp(-1e-40) is 1: top-p takes the lower id, which would weigh nothing at a temperature of 1e-300."""
    logits = np.array([-1e-40, 0], dtype=np.float32)
    params = SamplingParams(top_p=0, temperature=1e-300, temperature_last=True)
    for implementation in ("native", "reference"):
        assert Sampler(params).sample(logits, implementation=implementation) == 0
    assert_equal_weights(Sampler(params), logits)


def test_the_place_in_the_random_numbers_has_no_end() -> None:
    logits = make_logits("flat", 1000, 0)
    for step in (2**32, 2**63 + 1, 2**64 - 1, 2**70):
        sampler = Sampler(SamplingParams(seed=2**64 - 1, top_p=1))
        sampler.step = step
        other = sampler.fork()
        assert sampler.sample(logits) == other.sample(logits, implementation="reference")
        assert sampler.step == step + 1


def test_greedy_takes_the_first_of_the_largest(instructions: str) -> None:
    for n in (1, 64, 65, 200, 4096):
        for place in {0, n // 2, n - 1}:
            logits = np.full(n, -3.0e38, dtype=np.float32)
            logits[place:] = 1.5
            assert Sampler(SamplingParams(temperature=0)).sample(logits) == place
            logits[:] = -np.inf
            logits[place] = np.finfo(np.float32).min
            assert Sampler(SamplingParams(temperature=0)).sample(logits) == place


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 5}])
@pytest.mark.parametrize("n", [3, 64, 1000])
def test_what_is_no_logit_is_a_typed_error(instructions: str, options: dict[str, Any], n: int) -> None:
    for bad in (np.nan, np.inf):
        for place in {0, 1, n - 1}:
            logits = np.zeros(n, dtype=np.float32)
            logits[place] = bad
            sampler = Sampler(SamplingParams(**options))
            with pytest.raises(StateError, match=f"logit {place} of {n} is {bad}"):
                sampler.sample(logits, implementation="native")
            assert sampler.step == 0


@pytest.mark.parametrize("options", [{}, {"temperature": 0}])
def test_ids_and_bans_are_typed_errors(options: dict[str, Any]) -> None:
    logits = np.zeros(10, dtype=np.float32)
    params = SamplingParams(**options)
    with pytest.raises(ConfigError, match="token 10 is banned"):
        Sampler(replace(params, banned_tokens=(10,))).sample(logits)
    with pytest.raises(ConfigError, match=f"token {2**70} is banned"):
        Sampler(replace(params, banned_tokens=(1, 2**70))).sample(logits)
    with pytest.raises(ConfigError, match="token 12 is observed"):
        sampler_after(params, [1, 12]).sample(logits)
    with pytest.raises(ConfigError, match="no token is left"):
        Sampler(replace(params, banned_tokens=tuple(range(10)))).sample(logits)
    with pytest.raises(ConfigError, match="no token is left"):
        Sampler(params).sample(np.full(10, -np.inf, dtype=np.float32))


def test_logits_of_another_type_go_through_the_definition() -> None:
    logits = np.zeros(4)
    logits[2] = 1e-12  # float32 would keep it as well, but not 1 + 1e-12
    assert Sampler(SamplingParams(temperature=0)).sample(1 + logits) == 2
    assert Sampler(SamplingParams(temperature=0)).sample(1 + logits, implementation="native") == 0
    half = np.arange(4).astype(np.float16)
    assert Sampler(SamplingParams(temperature=0)).sample(half) == 3
    with pytest.raises(ConfigError, match="no implementation 'numpy'; there are native, reference"):
        Sampler(SamplingParams()).sample(logits, implementation="numpy")


def test_rows_that_are_not_contiguous() -> None:
    rows = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    got = sample_batch([Sampler(SamplingParams(seed=i)) for i in range(6)], rows.T)
    assert got == [Sampler(SamplingParams(seed=i)).sample(rows[:, i]) for i in range(6)]


@pytest.mark.parametrize("threads", [None, 1, 2, 5])
def test_a_batch_is_every_stream_by_itself(threads: int | None) -> None:
    rows = np.stack([make_logits(KINDS[i % len(KINDS)], 700, i) for i in range(20)])
    choices = [
        {},
        {"temperature": 0},
        {"top_k": 9},
        {"temperature_last": True, "temperature": 0.5},
        {"presence_penalty": 1, "banned_tokens": (3,)},
    ]
    streams = [
        sampler_after(SamplingParams(seed=i, **choices[i % len(choices)]), [i, 5, 5]) for i in range(20)
    ]
    alone = [sampler.fork() for sampler in streams]
    for _ in range(3):
        tokens = sample_batch(streams, rows, threads=threads)
        assert tokens == [
            sampler.sample(row, implementation="reference") for sampler, row in zip(alone, rows, strict=True)
        ]
        for sampler, token in zip(streams + alone, tokens + tokens, strict=True):
            sampler.observe(token)
    assert [sampler.to_dict() for sampler in streams] == [sampler.to_dict() for sampler in alone]


def test_an_error_in_a_batch_changes_no_stream() -> None:
    rows = np.zeros((3, 8), dtype=np.float32)
    rows[1, 4] = np.nan
    streams = [Sampler(SamplingParams(seed=i)) for i in range(3)]
    with pytest.raises(StateError, match="logit 4 of 8 is nan"):
        sample_batch(streams, rows)
    assert [sampler.step for sampler in streams] == [0, 0, 0]
    assert sample_batch([], np.empty((0, 8), np.float32)) == []


@pytest.mark.parametrize(
    ("count", "shape", "threads", "message"),
    [
        (2, (3, 8), None, r"2 samplers take logits \[2, N\], not the shape \(3, 8\)"),
        (2, (2,), None, "2 samplers take"),
        (2, (2, 0), None, "2 samplers take"),
        (2, (2, 8), 0, "threads must be 1 to 256, not 0"),
        (2, (2, 8), 10**6, "threads must be 1 to 256"),
    ],
)
def test_a_batch_that_does_not_fit(
    count: int, shape: tuple[int, ...], threads: int | None, message: str
) -> None:
    streams = [Sampler(SamplingParams()) for _ in range(count)]
    with pytest.raises(ConfigError, match=message):
        sample_batch(streams, np.zeros(shape, np.float32), threads=threads)


def test_a_sampler_given_twice() -> None:
    sampler = Sampler(SamplingParams())
    with pytest.raises(ConfigError, match="given twice"):
        sample_batch([sampler, sampler], np.zeros((2, 8), np.float32))


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        ((), ValueError),
        ((None, np.zeros(0, np.int64), np.zeros(0), 0, 0), (ValueError, RuntimeError, TypeError)),
        ((1, 2, 3, 4, 5), (RuntimeError, TypeError)),
    ],
)
def test_the_extension_refuses_what_is_no_stream(stream: tuple[Any, ...], error: Any) -> None:
    with pytest.raises(error):
        _engine.sample(np.zeros((1, 8), np.float32), [stream], 1)


def test_the_extension_refuses_counts_that_do_not_fit() -> None:
    options = Sampler(SamplingParams())._stream()[0]
    with pytest.raises(ValueError, match="one count for each token"):
        _engine.sample(np.zeros((1, 8), np.float32), [(options, np.zeros(3, np.int64), np.zeros(2), 0, 0)], 1)
    negative = (options, np.array([-1]), np.zeros(1), 0, 0)
    assert _engine.sample(np.zeros((1, 8), np.float32), [negative], 1) == [-1]
    assert _engine.candidate_weights(np.zeros(8, np.float32), negative) is None


def test_threads_of_python_draw_side_by_side() -> None:
    rows = np.stack([make_logits("trained", 3000, i) for i in range(8)])
    wanted = [Sampler(SamplingParams(seed=i)).sample(row) for i, row in enumerate(rows)]
    got: list[list[int]] = [[] for _ in range(4)]

    def draw(mine: list[int]) -> None:
        for _ in range(25):
            mine[:] = sample_batch([Sampler(SamplingParams(seed=i)) for i in range(8)], rows, threads=2)

    workers = [threading.Thread(target=draw, args=(mine,)) for mine in got]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert got == [wanted] * 4
