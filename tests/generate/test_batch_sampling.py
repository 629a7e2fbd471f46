"""Sampling of many rows in torch against the definition in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rookery.generate.batch import sampling as batch
from rookery.generate.batch.sampling import NO_TOKEN, Needs
from rookery.generate.batch.slots import SamplingSlots
from rookery.generate.sampling import Sampler, SamplingParams, _uniform

torch.set_num_threads(1)

KINDS = {
    "trained": lambda x: x * 3,
    "flat": lambda x: x * 0.01,
    "equal": lambda x: x * 0 - 2.5,
    "ties": lambda x: np.round(x * 2),
    "wide": lambda x: x * 1e6,
}

PARAMS = st.builds(
    SamplingParams,
    temperature=st.one_of(st.sampled_from([0.0, 1.0, 5e-324, 1e300]), st.floats(0.05, 5)),
    top_k=st.one_of(st.just(0), st.sampled_from([1, 2, 7, 10**30]), st.integers(0, 80)),
    top_p=st.one_of(st.sampled_from([0.0, 0.5, 0.85, 1.0]), st.floats(0, 1)),
    min_p=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
    temperature_last=st.booleans(),
    presence_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    penalty_decay=st.floats(0, 1),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
    banned_tokens=st.lists(st.integers(0, 60), max_size=6).map(tuple),
    seed=st.integers(0, 2**64 - 1),
)


def draw_logits(kind: str, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = KINDS[kind](rng.normal(size=size))
    if size > 1:
        x[rng.integers(1, size)] = -np.inf
    return x.astype(np.float32)


def wanted_weights(sampler: Sampler, logits: np.ndarray) -> np.ndarray:
    tokens, weights = sampler.candidates(logits)
    whole = np.zeros(len(logits))
    whole[tokens] = weights
    return whole


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 70),
    st.integers(0, 999),
    st.lists(
        st.tuples(st.sampled_from(list(KINDS)), PARAMS, st.lists(st.integers(0, 60))), min_size=1, max_size=4
    ),
)
def test_rows_are_weighed_and_drawn_as_the_definition_does(near, size, seed, rows):
    slots = SamplingSlots(len(rows), size, torch.device("cpu"))
    samplers, all_logits = [], []
    for slot, (kind, params, observed) in enumerate(rows):
        banned = tuple(token for token in params.banned_tokens if token < size)
        sampler = Sampler(replace(params, banned_tokens=banned))
        sampler.step = seed
        logits = draw_logits(kind, size, seed + slot)
        assume((np.delete(logits, list(banned)) > -np.inf).any())
        for token in observed:
            if token < size:
                sampler.observe(token)
        samplers.append(sampler)
        all_logits.append(logits)
        slots.put(slot, sampler)
    needs = Needs()
    for sampler in samplers:
        needs |= Needs.of(sampler.params)
    logits = torch.from_numpy(np.stack(all_logits))
    parameters, observed = slots.rows(len(rows)), slots.observed(len(rows))
    x = batch.scores(logits, parameters, observed if needs.penalties else None)
    got = batch.weights(x, parameters, ranks=needs.ranks).numpy()
    tokens = slots.choose(logits, needs).tolist()
    for sampler, row, weights, token in zip(samplers, all_logits, got, tokens, strict=True):
        params = sampler.params
        for slack in (0, 1e-12, -1e-12):
            sampler.params = near(params, slack)
            wanted = wanted_weights(sampler, row)
            if np.array_equal(wanted > 0, weights > 0):
                break
        np.testing.assert_allclose(weights, wanted, rtol=1e-9, atol=1e-300)
        assert token == sampler.sample(row, implementation="reference")


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_random_numbers_are_those_of_the_definition(seed):
    steps = [0, 1, 2, 1000, 2**40]
    signed = seed - 2**64 if seed >= 2**63 else seed
    got = batch.uniform(torch.full((len(steps),), signed), torch.tensor(steps))
    assert got.tolist() == [_uniform(seed, step) for step in steps]
    short = batch.uniform(torch.full((len(steps),), signed), torch.tensor(steps), torch.float32)
    torch.testing.assert_close(short, got.float(), rtol=0, atol=2**-24)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_nothing_to_choose_says_so_and_leaves_the_others_alone(value, temperature):
    slots = SamplingSlots(4, 5, torch.device("cpu"))
    banned = SamplingParams(temperature=temperature, banned_tokens=(0, 1, 2, 3, 4), seed=1)
    for slot in range(4):
        slots.put(slot, Sampler(banned if slot == 2 else replace(banned, banned_tokens=(1,))))
    logits = torch.tensor([[0.0, 9.0, 50.0, 1.0, 2.0]]).repeat(4, 1)
    logits[1, 1] = value
    needs = Needs.of(banned)
    assert slots.choose(logits, needs).tolist() == [2, NO_TOKEN, NO_TOKEN, 2]


def test_needs_are_what_the_parameters_ask_for():
    assert Needs.of(SamplingParams(temperature=0, top_k=5)) == Needs()
    assert Needs.of(SamplingParams(top_k=1)) == Needs()
    assert Needs.of(SamplingParams(top_p=1, min_p=0.1)) == Needs(draws=True)
    assert Needs.of(SamplingParams(top_p=0.9)) == Needs(draws=True, ranks=True)
    assert Needs.of(SamplingParams(top_p=1, top_k=3)) == Needs(draws=True, ranks=True)
    for option in ({"banned_tokens": (1,)}, {"repetition_penalty": 1.1}, {"frequency_penalty": -0.1}):
        assert Needs.of(SamplingParams(temperature=0, **option)) == Needs(penalties=True)
    assert Needs(penalties=True) | Needs(draws=True) == Needs(True, True, False)


def test_a_slot_observes_as_a_sampler_does_and_gives_it_back():
    params = SamplingParams(frequency_penalty=0.5, penalty_decay=0.9, seed=3)
    alone = Sampler(params)
    alone.observe(2)
    slots = SamplingSlots(3, 6, torch.device("cpu"))
    slots.put(2, alone)
    slots.move(2, 0)
    for token in (4, 2, 4):
        slots.took(torch.tensor([token, NO_TOKEN]), Needs.of(params))
        alone.observe(token)
        alone.step += 1
    got, wanted = slots.take(0, params).to_dict(), alone.to_dict()
    order = np.argsort(wanted["tokens"])
    assert got["tokens"] == np.array(wanted["tokens"])[order].tolist()
    np.testing.assert_allclose(got["counts"], np.array(wanted["counts"])[order], rtol=1e-12)
    for key in ("params", "seed", "step"):
        assert got[key] == wanted[key]
