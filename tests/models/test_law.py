"""The law of the project: however a text is cut, batched or packed, the model computes the same.

In float64, where two orders of one sum differ by 1e-13 and a mistake by much more.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rookery import ops
from rookery.config import VERSIONS, ModelConfig, Version, sized
from rookery.models import RWKV
from rookery.state import State

T = 40
CLOSE = {"rtol": 1e-9, "atol": 1e-9}

every_version = pytest.mark.parametrize("version", VERSIONS)


def config_of(version: Version, **sizes: int) -> ModelConfig:
    heads = {} if version == "4" else {"head_size": 8}
    return sized(version, **{"vocab_size": 37, "width": 24, "num_layers": 3, **heads, **sizes})


@pytest.fixture(scope="module")
def models(random_model) -> dict[Version, RWKV]:
    return {version: random_model(config_of(version), dtype=torch.float64) for version in VERSIONS}


def tokens_of(model: RWKV, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def weights_for(x: Tensor) -> Tensor:
    """Fixed and different for all elements, so that a loss depends on each in its own way."""
    return torch.arange(1, x.numel() + 1, dtype=x.dtype).view(x.shape).sin()


def gradients(model: RWKV, logits: Tensor, state: State[Tensor]) -> dict[str, Tensor]:
    """Of one loss on all logits and on the final state."""
    wkv = comparable(model.config.version, state.wkv)
    parts = (logits, state.time_shift, state.channel_shift, wkv)
    model.zero_grad()
    sum((part * weights_for(part)).sum() for part in parts).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def comparable(version: Version, wkv: Tensor) -> Tensor:
    """RWKV-4's three numbers are not unique: any maximum will do. Their ratio and logarithm are."""
    if version != "4":
        return wkv
    numerator, denominator, maximum = wkv.unbind(2)
    return torch.stack((numerator / denominator, maximum + denominator.log()), dim=2)


def assert_same(version: Version, got: State[Tensor], wanted: State[Tensor]) -> None:
    torch.testing.assert_close(got.time_shift, wanted.time_shift, **CLOSE)
    torch.testing.assert_close(got.channel_shift, wanted.channel_shift, **CLOSE)
    torch.testing.assert_close(comparable(version, got.wkv), comparable(version, wanted.wkv), **CLOSE)


@every_version
@settings(max_examples=8, deadline=None)
@given(cuts=st.sets(st.integers(1, T - 1), max_size=5))
def test_splits_equal_the_whole(models, version: Version, cuts: set[int]):
    model = models[version]
    tokens = tokens_of(model, 2, T)
    whole, end = model(tokens)
    wanted = gradients(model, whole, end)
    edges = [0, *sorted(cuts), T]
    state, spans = None, []
    for start, stop in pairwise(edges):
        logits, state = model(tokens[:, start:stop], state)
        spans.append(logits)
    torch.testing.assert_close(torch.cat(spans, dim=1), whole, **CLOSE)
    assert_same(version, state, end)
    for name, gradient in gradients(model, torch.cat(spans, dim=1), state).items():
        torch.testing.assert_close(gradient, wanted[name], **CLOSE, msg=name)


@every_version
def test_one_token_at_a_time_equals_all_at_once(models, version: Version):
    model = models[version]
    tokens = tokens_of(model, 1, T)
    state, spans = model.initial_state(), []
    with torch.no_grad():
        whole, end = model(tokens)
        for t in range(T):
            logits, state = model(tokens[:, t : t + 1], state)
            spans.append(logits)
    torch.testing.assert_close(torch.cat(spans, dim=1), whole, **CLOSE)
    assert_same(version, state, end)


@every_version
@settings(max_examples=8, deadline=None)
@given(cuts=st.sets(st.integers(0, T - 1), max_size=5), other_cuts=st.sets(st.integers(0, T - 1), max_size=5))
def test_packed_documents_equal_separate_runs(models, version: Version, cuts: set[int], other_cuts: set[int]):
    """Also where a row goes on with a document from the state that it is given."""
    model = models[version]
    tokens, before = tokens_of(model, 2, T), tokens_of(model, 2, 9, seed=1)
    starts = torch.zeros(2, T, dtype=torch.bool)
    with torch.no_grad():
        _, carried = model(before)
        for row, edges in enumerate((cuts, other_cuts)):
            starts[row, sorted(edges)] = True
        packed, end = model(tokens, carried, starts=starts)
        for row, edges in enumerate((cuts, other_cuts)):
            bounds = sorted({0, *edges, T})
            # A row that does not start with a document goes on with the one of its state.
            state = None if 0 in edges else State(*(part[:, row : row + 1] for part in carried))
            for start, stop in pairwise(bounds):
                alone, state = model(tokens[row : row + 1, start:stop], state)
                torch.testing.assert_close(packed[row : row + 1, start:stop], alone, **CLOSE)
                last, state = state, None
            assert_same(version, State(*(part[:, row : row + 1] for part in end)), last)


@every_version
def test_gradients_stay_within_documents(models, version: Version):
    model = models[version]
    starts = torch.zeros(1, T, dtype=torch.bool)
    starts[0, 17] = True
    tokens = torch.arange(T)[None] % model.config.vocab_size
    tokens[0, 17:] = torch.arange(T - 17) % 3
    tokens[0, :17] = 5 + torch.arange(17) % 3
    logits, _ = model(tokens, starts=starts)
    model.zero_grad()
    logits[0, 17:].square().sum().backward()
    gradient = model.emb.weight.grad
    assert gradient[:3].abs().min() > 0
    # The chunked forms may leave a rounding's worth.
    assert gradient[3:].abs().max() < 1e-12 * gradient.abs().max()


@every_version
def test_batched_streams_equal_single_ones(models, version: Version):
    model = models[version]
    tokens = tokens_of(model, 3, T)
    with torch.no_grad():
        _, state = model(tokens_of(model, 3, 5, seed=1))
        together, end = model(tokens, state)
        for row in range(3):
            one = State(*(part[:, row : row + 1] for part in state))
            alone, after = model(tokens[row : row + 1], one)
            torch.testing.assert_close(together[row : row + 1], alone, **CLOSE)
            assert_same(version, State(*(part[:, row : row + 1] for part in end)), after)


@every_version
def test_implementations_agree(models, version: Version):
    model = models[version]
    tokens = tokens_of(model, 2, 70)
    starts = torch.rand(2, 70, generator=torch.Generator().manual_seed(2)) < 0.05
    name = f"wkv{version[0]}"
    logits, end = model(tokens, starts=starts, implementation="reference")
    wanted = gradients(model, logits, end)
    # The models are in float64, in which kernels do not compute.
    others = set(ops.implementations(name)) - {"reference", "native", "triton"}
    assert "chunked" in others
    for other in others:
        got, state = model(tokens, starts=starts, implementation=other)
        torch.testing.assert_close(got, logits, **CLOSE)
        assert_same(version, state, end)
        for parameter, gradient in gradients(model, got, state).items():
            torch.testing.assert_close(gradient, wanted[parameter], **CLOSE, msg=parameter)


@every_version
def test_the_native_recurrence_agrees_in_float32(models, version: Version):
    model = copy.deepcopy(models[version]).float()
    tokens = tokens_of(model, 2, 40)
    starts = torch.rand(2, 40, generator=torch.Generator().manual_seed(2)) < 0.05
    logits, end = model(tokens, starts=starts, implementation="reference")
    wanted = gradients(model, logits, end)
    got, state = model(tokens, starts=starts, implementation="native")
    assert (got - logits).norm() < 1e-5 * logits.norm()
    for parameter, gradient in gradients(model, got, state).items():
        assert (gradient - wanted[parameter]).norm() < 1e-4 * wanted[parameter].norm(), parameter


@every_version
def test_a_state_given_is_not_written_into(models, version: Version):
    model = models[version]
    with torch.no_grad():
        _, state = model(tokens_of(model, 2, 5))
        kept = State(*(part.clone() for part in state))
        first, _ = model(tokens_of(model, 2, 7, seed=1), state)
        second, _ = model(tokens_of(model, 2, 7, seed=1), state)
    for part, wanted in zip(state, kept, strict=True):
        assert torch.equal(part, wanted)
    assert torch.equal(first, second)


@every_version
def test_gradients_reach_the_initial_state(models, version: Version):
    model = models[version]
    with torch.no_grad():
        _, before = model(tokens_of(model, 2, 5))
    state = State(*(part.clone().requires_grad_() for part in before))
    logits, _ = model(tokens_of(model, 2, 3, seed=1), state)
    (logits * weights_for(logits)).sum().backward()
    step = 1e-6
    for part, name in zip(state, State._fields, strict=True):
        direction = weights_for(part)
        ends = []
        for sign in (1, -1):
            moved = before._replace(**{name: getattr(before, name) + sign * step * direction})
            with torch.no_grad():
                out, _ = model(tokens_of(model, 2, 3, seed=1), moved)
            ends.append((out * weights_for(out)).sum())
        slope = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close((part.grad * direction).sum(), slope, rtol=1e-5, atol=1e-5)
