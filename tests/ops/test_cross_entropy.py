"""The loss from what the head reads, against torch's own from all logits."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from rookery.ops.fused import linear_cross_entropy
from rookery.ops.fused.cross_entropy import (
    linear_cross_entropy_formula,
    softmax_by_torch,
    softmax_by_triton,
)
from rookery.ops.triton import DEVICES

pytestmark = pytest.mark.usefixtures("watched_kernels")

IGNORED = -100
module = importlib.import_module("rookery.ops.fused.cross_entropy")


def make(dtype: torch.dtype, *, N: int = 37, D: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """x [2, 5, D], W [N, D], and targets of which two are ignored."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(N, D, generator=generator, dtype=torch.float64)
    targets = torch.randint(N, (2, 5), generator=generator)
    targets[0, 1] = targets[1, 4] = IGNORED
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def assert_close(got: Tensor, wanted: Tensor, bound: float) -> None:
    assert (got - wanted).abs().max() <= bound * wanted.abs().max()


@pytest.mark.parametrize("brake", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 4, 10, None])
def test_equals_the_formula(chunk: int | None, brake: float) -> None:
    x, weight, targets = make(torch.float32)
    loss = linear_cross_entropy(x, weight, targets, brake=brake, chunk=chunk)
    wanted = linear_cross_entropy_formula(x, weight, targets, brake=brake)
    assert loss.dtype == torch.float32
    assert_close(loss, wanted, 1e-6)
    # A factor on the loss, as a mean over tokens has it.
    got = torch.autograd.grad(loss / 8, (x, weight))
    for a, b in zip(got, torch.autograd.grad(wanted / 8, (x, weight)), strict=True):
        assert_close(a, b, 1e-6)


@pytest.mark.parametrize("chunk", [3, 10])
def test_gradients_are_those_of_the_values(chunk: int) -> None:
    x, weight, targets = make(torch.float64, N=7, D=3)

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(x, weight, targets, chunk=chunk)

    assert loss(x, weight).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, (x, weight))


def test_no_more_logits_are_held_than_a_chunk_has(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def softmax(logits: Tensor, *arguments: Any) -> Tensor:
        held.append(tuple(logits.shape))
        return softmax_by_torch(logits, *arguments)

    monkeypatch.setattr(module, "_softmax", lambda logits: softmax)
    x, weight, targets = make(torch.float32)
    linear_cross_entropy(x, weight, targets, chunk=4).backward()
    assert held == [(4, 37), (4, 37), (2, 37)]


def test_only_what_is_wanted_is_computed() -> None:
    x, weight, targets = make(torch.float32)
    [wanted] = torch.autograd.grad(linear_cross_entropy(x, weight, targets), [x])
    [got] = torch.autograd.grad(linear_cross_entropy(x, weight.detach(), targets), [x])
    assert torch.equal(got, wanted)
    with torch.no_grad():
        loss = linear_cross_entropy(x, weight, targets)
    assert not loss.requires_grad
    assert_close(loss, linear_cross_entropy_formula(x, weight, targets), 1e-6)


def test_where_all_is_ignored_there_is_no_loss() -> None:
    x, weight, targets = make(torch.float32)
    loss = linear_cross_entropy(x, weight, torch.full_like(targets, IGNORED))
    loss.backward()
    assert float(loss.detach()) == 0.0
    for tensor in (x, weight):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_autocast_rounds_the_products_alone() -> None:
    x, weight, targets = make(torch.float32, N=64, D=32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(x, weight, targets, chunk=4)
        wanted = linear_cross_entropy_formula(x, weight, targets)
    assert loss.dtype == torch.float32
    assert_close(loss, wanted, 1e-6)
    got = torch.autograd.grad(loss / 8, (x, weight))
    for a, b in zip(got, torch.autograd.grad(wanted / 8, (x, weight)), strict=True):
        assert a.dtype == torch.float32
        assert_close(a, b, 0.02)


def test_torch_finds_no_fault_with_the_operator() -> None:
    x, weight, targets = make(torch.float32, N=7, D=3)
    arguments = (x.detach().flatten(0, 1).requires_grad_(), weight, targets.flatten(), torch.float32)
    torch.library.opcheck(module._forward, (*arguments, IGNORED, 0.1, 4, True, True))


@pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning")
def test_inside_a_compiled_function() -> None:
    x, weight, targets = make(torch.float32)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(x: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(x * 2, weight, targets, chunk=4) / 8

    wanted = linear_cross_entropy(x * 2, weight, targets, chunk=4) / 8
    got = compiled(x, weight)
    assert torch.equal(got, wanted)
    gradients = torch.autograd.grad(got, (x, weight)), torch.autograd.grad(wanted, (x, weight))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("N", "brake", "gradient"), [(37, 0.1, True), (5000, 0.0, True), (64, 0.0, False)])
def test_the_kernel_equals_torch(dtype: torch.dtype, N: int, brake: float, gradient: bool) -> None:
    pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(1)
    device = DEVICES[0]
    logits = (torch.randn(4, N, generator=generator) * 5).to(dtype)
    # Two largest logits, far apart: the first one counts.
    logits[1, [2, N - 1]] = 40.0
    targets = torch.tensor([N - 1, 3, IGNORED, 0])
    losses = torch.empty(4)
    wanted = softmax_by_torch(logits, targets, losses, IGNORED, brake, gradient)
    ours, of_ours = logits.clone().to(device), torch.empty(4, device=device)
    got = softmax_by_triton(ours, targets.to(device), of_ours, IGNORED, brake, gradient)
    assert_close(of_ours.cpu(), losses, 1e-6)
    assert float(of_ours[2]) == 0.0
    if gradient:
        assert got is ours
        assert_close(got.cpu().float(), wanted.float(), 1e-6 if dtype == torch.float32 else 2**-8)
    else:
        assert torch.equal(ours.cpu(), logits)
