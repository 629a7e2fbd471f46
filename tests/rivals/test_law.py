"""The law holds for every mixer: however a text is cut, batched or packed, the model computes the same.

In float64, where two orders of one sum differ by 1e-13 and a mistake by much more.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from rookery.errors import ConfigError, StateError
from rookery.rivals import MIXERS, leaves, map_state, state_bytes
from rookery.state import State

T = 23
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
RIVALS = [name for name, row in MIXERS.items() if not row.is_rwkv]

every_mixer = pytest.mark.parametrize("name", MIXERS)
every_rival = pytest.mark.parametrize("name", RIVALS)


def tokens_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(29, shape, generator=torch.Generator().manual_seed(seed))


def of_stream(state: Any, row: int) -> Any:
    """The state of one stream; RWKV's has layers on axis 0."""
    axis = 1 if isinstance(state, State) else 0
    return map_state(lambda x: x.narrow(axis, row, 1), state)


def gradients(model: Any, logits: Tensor, state: Any) -> dict[str, Tensor]:
    """Of one loss on all logits and on what the state makes of further tokens."""
    further, _ = model(tokens_of(2, 4, seed=2), state)
    weights = torch.arange(1, logits.numel() + 1, dtype=logits.dtype).view(logits.shape).sin()
    model.zero_grad()
    ((logits * weights).sum() + further.square().sum()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@every_mixer
@pytest.mark.parametrize("cuts", [[1], [11], [1, 2, 3, 17], [5, 6, 22]])
def test_splits_equal_the_whole(models, name: str, cuts: list[int]):
    model, tokens = models[name], tokens_of(2, T)
    whole, end = model(tokens)
    wanted = gradients(model, whole, end)
    assert wanted.keys() == dict(model.named_parameters()).keys()
    state, spans = None, []
    for start, stop in pairwise([0, *cuts, T]):
        logits, state = model(tokens[:, start:stop], state)
        spans.append(logits)
    split = torch.cat(spans, dim=1)
    torch.testing.assert_close(split, whole, **CLOSE)
    for parameter, gradient in gradients(model, split, state).items():
        torch.testing.assert_close(gradient, wanted[parameter], **CLOSE, msg=parameter)


@every_mixer
def test_one_token_at_a_time_equals_all_at_once(models, name: str):
    model, tokens, state, spans = models[name], tokens_of(2, T), None, []
    with torch.no_grad():
        whole, _ = model(tokens)
        for t in range(T):
            logits, state = model(tokens[:, t : t + 1], state)
            spans.append(logits)
        last, _ = model(tokens, last_only=True)
    torch.testing.assert_close(torch.cat(spans, dim=1), whole, **CLOSE)
    torch.testing.assert_close(last, whole[:, -1:], **CLOSE)


@every_mixer
@pytest.mark.parametrize(
    ("edges", "others"), [([4], [13]), ([0, 9, 10], []), ([1, 22], [0, 5, 22]), ([7], [7])]
)
def test_packed_documents_equal_separate_runs(models, name: str, edges: list[int], others: list[int]):
    """Also where a row goes on with a document from the state that it is given, and after the row."""
    model, tokens = models[name], tokens_of(2, T)
    starts = torch.zeros(2, T, dtype=torch.bool)
    with torch.no_grad():
        _, carried = model(tokens_of(2, 9, seed=1))
        for row, firsts in enumerate((edges, others)):
            starts[row, firsts] = True
        packed, end = model(tokens, carried, starts=starts)
        step, _ = model(tokens[:, :1], end)
        span, _ = model(tokens[:, :5], end)
        for row, firsts in enumerate((edges, others)):
            state = None if 0 in firsts else of_stream(carried, row)
            last = None
            for start, stop in pairwise(sorted({0, *firsts, T})):
                alone, last = model(tokens[row : row + 1, start:stop], state)
                torch.testing.assert_close(packed[row : row + 1, start:stop], alone, **CLOSE)
                state = None
            for together, length in ((step, 1), (span, 5)):
                alone, _ = model(tokens[row : row + 1, :length], last)
                torch.testing.assert_close(together[row : row + 1], alone, **CLOSE)


@every_mixer
def test_gradients_stay_within_documents(models, name: str):
    model = models[name]
    starts = torch.zeros(1, T, dtype=torch.bool)
    starts[0, 12] = True
    tokens = torch.cat((5 + torch.arange(12) % 3, torch.arange(T - 12) % 3))[None]
    logits, _ = model(tokens, starts=starts)
    model.zero_grad()
    logits[0, 12:].square().sum().backward()
    gradient = model.emb.weight.grad
    assert gradient[:3].abs().min() > 0
    assert gradient[3:].abs().max() < 1e-12 * gradient.abs().max()


@every_mixer
def test_no_token_sees_a_later_one(models, name: str):
    model, tokens = models[name], tokens_of(1, T)
    changed = tokens.clone()
    changed[0, 15] = (changed[0, 15] + 1) % 29
    with torch.no_grad():
        one, other = model(tokens)[0], model(changed)[0]
    # The largest key, by which AFT scales, may be a later one: that leaves a rounding's worth.
    torch.testing.assert_close(one[:, :15], other[:, :15], rtol=1e-12, atol=1e-12)
    assert ((one - other)[:, 15:].abs().amax(-1) > 1e-9).all()


@every_mixer
def test_a_state_given_is_not_written_into(models, name: str):
    model = models[name]
    starts = torch.zeros(2, 7, dtype=torch.bool)
    starts[0, 3] = True
    with torch.no_grad():
        _, state = model(tokens_of(2, 5))
        kept = [part.clone() for part in leaves(state)]
        for length, documents in ((1, None), (7, None), (7, starts)):
            arguments = (tokens_of(2, length, seed=1), state)
            first, _ = model(*arguments, starts=documents)
            second, _ = model(*arguments, starts=documents)
            assert torch.equal(first, second)
    for part, wanted in zip(leaves(state), kept, strict=True):
        assert torch.equal(part, wanted)


@every_rival
@pytest.mark.parametrize("documents", [False, True])
def test_gradients_are_those_of_the_values(random_rival, name: str, documents: bool):
    """Of the mixing over time alone, to its input, to the state it is given, and to its parameters."""
    heads = {"head_size": 4} if MIXERS[name].config(vocab_size=2, width=4, num_layers=1).num_heads else {}
    att = random_rival(name, width=4, num_layers=1, **heads).blocks[0].att
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    starts = torch.tensor([[False, False, True], [True, False, True]]) if documents else None
    with torch.no_grad():
        _, state, _ = att(x[:, :3], None, None)
    parts = list(leaves(state))
    moving = [i for i, part in enumerate(parts) if part.is_floating_point()]
    parameters = dict(att.named_parameters())

    def function(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        given = list(parts)
        for i, part in zip(moving, others, strict=False):
            given[i] = part
        learned = dict(zip(parameters, others[len(moving) :], strict=True))
        arguments = (x, type(state)(*given), None)
        y, after, _ = torch.func.functional_call(att, learned, arguments, {"starts": starts})
        return y, *(part for part in leaves(after) if part.is_floating_point())

    inputs = [x[:, 3:], *(parts[i] for i in moving), *parameters.values()]
    inputs = [each.detach().clone().requires_grad_() for each in inputs]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@every_mixer
def test_states_have_bytes(models, name: str):
    model = models[name]
    with torch.no_grad():
        sizes = [state_bytes(model(tokens_of(1, length))[1]) for length in (1, 8, 16)]
        _, state = model(tokens_of(1, 8))
    assert sizes[1] == sum(part.numpy().nbytes for part in leaves(state)) > 0
    assert (sizes[2] - sizes[1] == 8 * (sizes[1] - sizes[0]) / 7 > 0) == MIXERS[name].grows
    assert (sizes[0] == sizes[2]) == (not MIXERS[name].grows)


@every_rival
def test_what_a_state_keeps_is_not_the_span_that_it_comes_from(models, name: str):
    model = models[name]
    with torch.no_grad():
        _, state = model(tokens_of(1, 40))
    held = sum(part.untyped_storage().nbytes() for part in leaves(state))
    assert held <= 1.01 * state_bytes(state)


@every_mixer
def test_states_of_others_are_refused(models, random_rival, name: str):
    model = models[name]
    with torch.no_grad():
        _, state = model(tokens_of(2, 5))
        _, deeper = random_rival(name, num_layers=3)(tokens_of(2, 5))
    for wrong in (deeper, of_stream(state, 0), "state", [state], map_state(lambda x: x[..., None], state)):
        with pytest.raises(StateError):
            model(tokens_of(2, 3), wrong)
    other = models["rnn" if name == "lstm" else "lstm"](tokens_of(2, 5))[1]
    with pytest.raises(StateError):
        model(tokens_of(2, 3), other)


@every_mixer
def test_tokens_that_do_not_fit_are_refused(models, name: str):
    model = models[name]
    for wrong in (
        torch.tensor([[29]]),
        torch.tensor([[-1]]),
        torch.zeros(2, 0, dtype=torch.int64),
        torch.zeros(1, 1),
    ):
        with pytest.raises(ConfigError):
            model(wrong)
    with pytest.raises(ConfigError, match="starts"):
        model(torch.tensor([[1, 2]]), starts=torch.tensor([[True]]))


@every_mixer
def test_bfloat16_and_autocast_give_nearly_the_same(random_rival, name: str):
    model, tokens = random_rival(name, dtype=torch.float32), tokens_of(2, T)
    starts = torch.zeros(2, T, dtype=torch.bool)
    starts[1, 9] = True
    wanted, _ = model(tokens, starts=starts)
    narrow = random_rival(name, dtype=torch.bfloat16)
    results = []
    for run, context in (
        (narrow, torch.autocast("cpu", enabled=False)),
        (model, torch.autocast("cpu", torch.bfloat16)),
    ):
        with context:
            first, state = run(tokens[:, :14], starts=starts[:, :14])
            second, state = run(tokens[:, 14:], state)
            step, _ = run(tokens[:, :1], state)
            results.append(torch.cat((first, second), dim=1))
        assert step.dtype == first.dtype == torch.bfloat16
        run.zero_grad()
        (results[-1].float().square().mean() + step.float().square().mean()).backward()
        assert all(p.grad.isfinite().all() for p in run.parameters())
    for got in results:
        assert (got.float() - wanted).norm() < 0.05 * wanted.norm()
