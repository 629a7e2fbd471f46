"""AFT against its formula, written out."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from rookery.errors import ConfigError
from rookery.rivals.aft import weighted_average

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def formula(att: torch.nn.Module, x: Tensor, biases: Tensor | None) -> Tensor:
    """One document [T, D], channel by channel, sum by sum."""
    q, k, v = (x @ matrix.weight.T for matrix in (att.query, att.key, att.value))
    T, D = x.shape
    y = torch.zeros(T, D, dtype=x.dtype)
    for t in range(T):
        for d in range(D):
            above = below = 0.0
            for i in range(t + 1):
                weight = math.exp(k[i, d] + (0.0 if biases is None else biases[t, i]))
                above, below = above + weight * v[i, d], below + weight
            y[t, d] = torch.sigmoid(q[t, d]) * above / below
    return y @ att.output.weight.T


def biases_of(att: torch.nn.Module) -> Tensor:
    return att.position_rows @ att.position_columns.T if att.config.position_rank else att.position_bias


@torch.no_grad()
@pytest.mark.parametrize("rank", [0, 3])
def test_aft_full_is_its_formula(random_rival, rank: int):
    att = random_rival("aft", width=4, context=12, position_rank=rank).blocks[0].att
    x = normal(2, 9, 4)
    y, state, _ = att(x, None, None)
    for row in range(2):
        torch.testing.assert_close(y[row], formula(att, x[row], biases_of(att)), **CLOSE)
    assert state.keys.shape == (2, 9, 4)


@torch.no_grad()
@pytest.mark.parametrize("rank", [0, 3])
def test_positions_are_those_in_the_document(random_rival, rank: int):
    att = random_rival("aft", width=4, context=6, position_rank=rank).blocks[0].att
    x = normal(2, 9, 4)
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[0, 5] = starts[1, [3, 8]] = True
    y, state, _ = att(x, None, None, starts=starts)
    for row, bounds in ((0, (0, 5, 9)), (1, (0, 3, 8, 9))):
        for first, last in pairwise(bounds):
            alone = formula(att, x[row, first:last], biases_of(att))
            torch.testing.assert_close(y[row, first:last], alone, **CLOSE)
    assert state.position.tolist() == [4, 1]
    assert state.keys.shape == (2, 4, 4)


@torch.no_grad()
def test_aft_simple_is_its_formula(random_rival):
    att = random_rival("aft-simple", width=4).blocks[0].att
    x = normal(2, 9, 4)
    y, _, _ = att(x, None, None)
    for row in range(2):
        torch.testing.assert_close(y[row], formula(att, x[row], None), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize(("keys", "biases"), [(1.0, 1.0), (1.0, 12.0), (60.0, 1.0), (300.0, 300.0)])
def test_averages_are_stable_for_keys_and_biases_of_any_size(
    dtype: torch.dtype, streams: int, keys: float, biases: float
):
    """Against a softmax over pairs, in float64."""
    inputs = [biases * normal(streams, 7, 7, seed=1), keys * normal(2, 7, 3, seed=2), normal(2, 7, 3, seed=3)]
    # The shift of all keys cancels.
    inputs[1] += 500.0
    hidden = torch.ones(7, 7, dtype=torch.bool).triu(1).expand(streams, 7, 7)

    def wanted(w: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = w.masked_fill(hidden, -torch.inf)[..., None] + k[:, None]
        return (torch.softmax(scores, dim=2) * v[:, None]).sum(2)

    rounded = [x.to(dtype).requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in rounded]
    got, want = weighted_average(rounded[0], hidden, *rounded[1:]), wanted(*exact)
    bound = 1e-4 if dtype == torch.float32 else 1e-10
    assert (got - want).abs().max() < bound
    weights = normal(*want.shape, seed=4)
    gradients = (
        torch.autograd.grad(got, rounded, weights.to(dtype)),
        torch.autograd.grad(want, exact, weights),
    )
    for x, y in zip(*gradients, strict=True):
        assert (x - y).abs().max() < 10 * bound * max(1, y.abs().max())


def test_a_document_beyond_the_context_is_refused(random_rival):
    model = random_rival("aft", context=8)
    tokens = torch.arange(9)[None]
    with pytest.raises(ConfigError, match="9 tokens, but AFT's learned position biases end at 8"):
        model(tokens)
    _, state = model(tokens[:, :8])
    with pytest.raises(ConfigError, match="9 tokens"):
        model(tokens[:, :1], state)
    starts = torch.zeros(1, 9, dtype=torch.bool)
    starts[0, 4] = True
    assert model(tokens, starts=starts)[0].isfinite().all()
    assert model(tokens[:, :1], state, starts=starts[:, 4:5])[0].isfinite().all()
