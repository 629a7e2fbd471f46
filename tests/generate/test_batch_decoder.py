"""Streams that are decoded together say what each would say alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rookery import checkpoints
from rookery.errors import ConfigError, StateError
from rookery.generate import Sampler, SamplingParams
from rookery.generate.batch import NO_TOKEN, BatchDecoder, decoder, steps
from rookery.generate.batch.decoder import batch_sizes
from rookery.generate.torch_backend import TorchBackend
from rookery.models import from_checkpoint
from rookery.ops.triton import interpreting

torch.set_num_threads(1)

GREEDY = SamplingParams(temperature=0)
RANDOM = SamplingParams(temperature=1.5, top_p=0.9, top_k=50, seed=5)
PENALISED = SamplingParams(
    temperature=1.2, top_p=1, repetition_penalty=1.3, frequency_penalty=0.4, seed=2**63 + 9
)
FLAT = SamplingParams(
    temperature=0.9, top_p=1, min_p=0.02, presence_penalty=0.7, banned_tokens=(3, 70), seed=1
)

pytestmark = pytest.mark.usefixtures("watched_kernels")


@pytest.fixture(scope="module")
def backends(model_file):
    opened: dict[str, TorchBackend] = {}

    def get(version: str) -> TorchBackend:
        if version not in opened:
            model = from_checkpoint(checkpoints.load(model_file(version, vocab_size=97)), dtype=torch.float32)
            opened[version] = TorchBackend(model.requires_grad_(False), prefill_chunk=3)
        return opened[version]

    return get


def alone(backend: TorchBackend, prompt: list[int], params: SamplingParams, count: int):
    """What a stream says by itself, by the definition of sampling; and its state before the last token."""
    sampler, state = Sampler(params), backend.initial_state()
    tokens, said = prompt, []
    while len(said) < count:
        logits, state = backend.forward(np.array([tokens]), state, last_only=True)
        said.append(sampler.sample(logits[0, 0], implementation="reference"))
        sampler.observe(said[-1])
        tokens = said[-1:]
    return said, state, sampler


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_streams_that_come_and_go_say_what_they_would_say_alone(backends, version):
    backend = backends(version)
    decoder = BatchDecoder(backend, max_streams=5)
    said: dict[int, list[int]] = {}
    streams: dict[int, tuple[list[int], SamplingParams]] = {}
    left = {}

    def join(prompt: list[int], params: SamplingParams) -> int:
        stream = decoder.join(prompt, sampling=params)
        said[stream], streams[stream] = [], (prompt, params)
        return stream

    def step(count: int) -> None:
        for _ in range(count):
            for stream, token in decoder.step().items():
                said[stream].append(token)

    first = join([1, 2, 3, 4, 5, 6, 7], GREEDY)
    step(3)
    second, third = join([9], RANDOM), join([8, 8], PENALISED)
    step(3)
    left[first] = decoder.leave(first)
    step(2)
    fourth, fifth, sixth = join([1, 2], GREEDY), join([50, 60, 70, 80], FLAT), join([0], RANDOM)
    step(1)
    left[second] = decoder.leave(second)
    left[fourth] = decoder.leave(fourth)
    step(3)
    assert decoder.streams == [third, fifth, sixth]
    for stream, tokens in decoder.steps(4).items():
        said[stream] += tokens
    left |= {stream: decoder.leave(stream) for stream in decoder.streams}
    assert decoder.step() == {}
    for stream, (prompt, params) in streams.items():
        wanted, state, sampler = alone(backend, prompt, params, len(said[stream]))
        assert said[stream] == wanted, (stream, params)
        assert left[stream].unread == wanted[-1:]
        assert left[stream].sampler.step == sampler.step * (params != GREEDY) + len(wanted) * (
            params == GREEDY
        )
        for part, expected in zip(left[stream].state, state, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not interpreting(), reason="Triton runs on a GPU here")
def test_recurrences_in_place_say_the_same(backends):
    backend = backends("7")
    decoder = BatchDecoder(backend, max_streams=2, implementation="in place")
    prompts = {decoder.join([i + 1, 2], sampling=RANDOM): [i + 1, 2] for i in range(2)}
    said = decoder.steps(3)
    for stream, prompt in prompts.items():
        assert said[stream] == alone(backend, prompt, RANDOM, 3)[0]


def test_a_stream_that_left_goes_on_where_it_was(backends):
    backend = backends("7")
    wanted, _, _ = alone(backend, [5, 6], PENALISED, 9)
    here, there = BatchDecoder(backend, max_streams=2), BatchDecoder(backend, max_streams=3)
    stream = here.join([5, 6], sampling=PENALISED)
    here.join([7], sampling=GREEDY)
    said = here.steps(4)[stream]
    state, unread, sampler = here.leave(stream)
    arrays = backend.to_numpy(state)
    there.join([1, 2, 3])
    again = there.join(unread, state=arrays, sampling=sampler)
    assert said + there.steps(5)[again] == wanted
    assert sampler.step == 4


def test_what_lies_in_other_slots_disturbs_nobody(backends):
    backend = backends("7")
    decoder = BatchDecoder(backend, max_streams=4, sizes=[4])
    stream = decoder.join([5, 6], sampling=GREEDY)
    broken = decoder.join([1], state=backend.from_numpy(_filled(backend, np.nan)), sampling=RANDOM)
    first = decoder.steps(3)
    assert first[broken] == [NO_TOKEN] * 3
    decoder.leave(broken)
    said = first[stream] + decoder.steps(3)[stream]
    healed = decoder.join([5, 6], sampling=GREEDY)
    wanted, _, _ = alone(backend, [5, 6], GREEDY, 9)
    assert decoder.steps(3) == {stream: wanted[6:], healed: wanted[:3]}
    assert said == wanted[:6]


def _filled(backend, value):
    state = backend.to_numpy(backend.initial_state())
    state.wkv[:] = value
    return state


def test_the_logits_are_those_of_the_last_token(backends):
    backend = backends("6")
    decoder = BatchDecoder(backend, max_streams=3)
    gone, stream = decoder.join([4]), decoder.join([5, 6], sampling=GREEDY)
    decoder.step()
    wanted, _ = backend.forward(np.array([[5, 6]]), backend.initial_state(), last_only=True)
    np.testing.assert_allclose(decoder.logits(stream), wanted[0, 0], rtol=1e-4, atol=1e-5)
    decoder.leave(gone)
    decoder.step()
    assert decoder._slots == {stream: 0}


def test_each_size_is_recorded_once_and_samplers_when_they_are_needed(backends, monkeypatch):
    recorded = []

    def record(run, *, warm_up, device, pool):
        warm_up()
        warm_up()
        recorded.append(warm_up is run)
        return run

    monkeypatch.setattr(decoder, "record", record)
    monkeypatch.setattr(steps, "record", record)
    made = BatchDecoder(backends("7"), max_streams=6)
    assert (made.sizes, recorded) == ([1, 2, 4, 6], [True] * 4)
    prompts = {made.join([i + 1, 2], sampling=RANDOM): [i + 1, 2] for i in range(5)}
    said = made.steps(3)
    again = made.steps(3)
    assert recorded == [True] * 4 + [False]
    for stream, prompt in prompts.items():
        assert said[stream] + again[stream] == alone(backends("7"), prompt, RANDOM, 6)[0]
    made.leave(1)
    made.join([1], sampling=PENALISED)
    made.steps(2)
    assert len(recorded) == 6


def test_sizes():
    assert [batch_sizes(most) for most in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]


def test_what_does_not_fit_is_refused_and_takes_no_slot(backends):
    backend = backends("7")
    decoder = BatchDecoder(backend, max_streams=1)
    for tokens, problem in (
        ([], "at least one id"),
        ([97], "token 97 is outside"),
        (["a"], "at least one id"),
    ):
        with pytest.raises(ConfigError, match=problem):
            decoder.join(tokens)
    with pytest.raises(StateError, match="needs"):
        decoder.join([1], state=backend.initial_state(2))
    with pytest.raises(ConfigError, match="token 200 is banned"):
        decoder.join([1], sampling=SamplingParams(banned_tokens=(200,)))
    decoder.join([1])
    with pytest.raises(ConfigError, match="all 1 slots are taken"):
        decoder.join([1])
    with pytest.raises(ConfigError, match=r"no stream 7; there are \[1\]"):
        decoder.leave(7)
    for sizes in ([], [2, 1], [0, 1], [1, 2]):
        with pytest.raises(ConfigError, match="sizes must ascend"):
            BatchDecoder(backend, max_streams=1, sizes=sizes)
    with pytest.raises(ConfigError, match="prefill_chunk"):
        TorchBackend(backend.model, prefill_chunk=0)
