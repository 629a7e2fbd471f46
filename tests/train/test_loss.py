from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rookery.models import RWKV, init_weights
from rookery.train.data import IGNORED, Rows
from rookery.train.loop import accumulate_gradients
from rookery.train.loss import CHUNKED, L2WRAP, cross_entropy, l2wrap, summed_loss
from rookery.train.optimizer import make_optimizer, set_learning_rate


@pytest.fixture
def model(tiny) -> RWKV:
    model = RWKV(tiny().model_config(50))
    init_weights(model, seed=1)
    # The recipe's zeros would keep most gradients at zero.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def some_rows(ignored: bool = False, starts: bool = False) -> Rows:
    generator = np.random.default_rng(5)
    tokens = generator.integers(0, 50, (6, 10))
    targets = tokens[:, 1:].copy()
    if ignored:
        # Unevenly, so that micro-batches have different numbers of targets.
        targets[:2, 3:] = IGNORED
        targets[4, 1] = IGNORED
    first = np.zeros((6, 9), dtype=bool)
    first[1, 4] = first[5, 1] = True
    return Rows(tokens[:, :-1], targets, first if starts else None)


def test_cross_entropy_sums_what_is_to_be_predicted():
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    targets = torch.tensor([[0, IGNORED, 4], [2, 2, IGNORED]])
    expected = sum(
        -logits[b, t].log_softmax(0)[targets[b, t]] for b in range(2) for t in range(3) if targets[b, t] >= 0
    )
    assert float(cross_entropy(logits, targets)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.0, 2.5])
def test_l2wrap_is_the_gradient_of_half_the_square_of_the_largest_logits(scale):
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    loss = logits.pow(3).sum()
    (l2wrap(loss, logits, positions=12) * scale).backward()
    plain = logits.detach().clone().requires_grad_()
    penalty = 0.5 * L2WRAP / 12 * plain.max(dim=-1).values.square().sum()
    ((plain.pow(3).sum() + penalty) * scale).backward()
    assert logits.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(logits.grad, plain.grad, rtol=1e-12, atol=0)


def test_l2wrap_leaves_the_loss_as_it_is():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = logits.sum()
    assert torch.equal(l2wrap(loss, logits, positions=6), loss)


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_micro_batches_have_the_gradient_of_the_big_batch(model, tiny, accumulate, ignored, starts):
    rows = some_rows(ignored, starts)
    losses, gradients = [], []
    for parts in (1, accumulate):
        model.zero_grad()
        losses.append(float(accumulate_gradients(model, rows, tiny(batch=6, accumulate=parts))))
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, summed, rtol=1e-4, atol=1e-6 * float(whole.abs().max()) + 1e-9)


def test_the_loss_is_the_mean_over_predicted_tokens(model, tiny):
    rows = some_rows(ignored=True)
    logits, _ = model(torch.from_numpy(rows.inputs))
    expected = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(rows.targets).flatten())
    loss = accumulate_gradients(model, rows, tiny(batch=6))
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_l2wrap_can_be_switched_off(model, tiny):
    def gradient(**options):
        model.zero_grad()
        accumulate_gradients(model, some_rows(), tiny(batch=6, **options))
        return model.head.weight.grad.clone()

    assert not torch.equal(gradient(), gradient(l2wrap=False))
    torch.testing.assert_close(gradient(), gradient(l2wrap=False), rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("options", [{}, {"l2wrap": False}])
def test_logits_in_chunks_give_the_same_loss_and_gradients(model, tiny, monkeypatch, accumulate, options):
    losses, gradients = [], []
    for chunked in (False, True):
        monkeypatch.setitem(CHUNKED, "cpu", chunked)
        model.zero_grad()
        config = tiny(batch=6, accumulate=accumulate, **options)
        losses.append(float(accumulate_gradients(model, some_rows(ignored=True, starts=True), config)))
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for whole, chunks in zip(*gradients, strict=True):
        torch.testing.assert_close(chunks, whole, rtol=1e-4, atol=1e-6 * float(whole.abs().max()) + 1e-9)


def test_a_head_with_something_around_it_is_not_left_out(model, monkeypatch):
    monkeypatch.setitem(CHUNKED, "cpu", True)
    rows = some_rows()
    inputs, targets = torch.from_numpy(rows.inputs), torch.from_numpy(rows.targets)
    plain, _ = summed_loss(model, inputs, targets)
    model.head = torch.nn.Sequential(model.head, torch.nn.Threshold(1e9, 0.0))
    uniform, _ = summed_loss(model, inputs, targets)
    assert float(uniform.detach()) == pytest.approx(targets.numel() * np.log(50), rel=1e-6)
    assert float(plain.detach()) != pytest.approx(float(uniform.detach()), rel=1e-3)


def test_bf16_is_close_and_keeps_float32_gradients(model, tiny):
    losses = [float(accumulate_gradients(model, some_rows(), tiny(batch=6, bf16=b))) for b in (False, True)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_optimizer_has_every_parameter_once_with_its_multiple(model, tiny):
    optimizer = make_optimizer(model, tiny(weight_decay=0.1))
    set_learning_rate(optimizer, 1e-3)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(of) == len(list(model.parameters())) == sum(len(g["params"]) for g in optimizer.param_groups)
    named = dict(model.named_parameters())
    for name, rate, decay in (
        ("blocks.1.att.w0", 2e-3, 0.0),
        ("blocks.1.att.a0", 1e-3, 0.0),
        ("blocks.0.att.receptance.weight", 1e-3, 0.1),
        ("emb.weight", 1e-3, 0.1),
        ("head.weight", 1e-3, 0.1),
        ("blocks.0.ln1.weight", 1e-3, 0.0),
        ("blocks.1.att.w1", 1e-3, 0.0),
    ):
        group = of[id(named[name])]
        assert (group["lr"], group["weight_decay"]) == (pytest.approx(rate), decay), name


def test_the_fused_kernel_computes_what_the_plain_loop_does(model, tiny):
    import copy

    other = copy.deepcopy(model)
    config = tiny(batch=6, weight_decay=0.1)
    fused = make_optimizer(model, config)
    plain = make_optimizer(other, config)
    for group in plain.param_groups:
        group["fused"], group["foreach"] = False, False
    for each, optimizer in ((model, fused), (other, plain)):
        for _ in range(3):
            set_learning_rate(optimizer, 1e-3)
            optimizer.zero_grad()
            accumulate_gradients(each, some_rows(), config)
            optimizer.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
