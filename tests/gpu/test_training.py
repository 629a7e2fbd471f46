"""Losses and gradients on a GPU are those of the CPU, by all that a step of training runs through."""

from __future__ import annotations

import copy
import os
import signal
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from rookery.ops.fused import linear_cross_entropy
from rookery.rivals import build, sizes_for
from rookery.train import TrainConfig, resume, train
from rookery.train.display import SilentReporter
from rookery.train.loop import TrainResult, compile_blocks
from rookery.train.loss import loss_of_rows
from rookery.train.metrics import Metrics, read_metrics

VOCABULARY = 48

# Two whose recurrences have Triton kernels of rookery's own, and one of torch's operators.
RIVALS = ("attention", "deltanet", "gla")


def gradients(
    model: Any, device: str, *, bf16: bool = False, compiled: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Of rows that end inside a chunk and hold two documents; on the CPU."""
    model = copy.deepcopy(model).to(device)
    if compiled:
        torch._dynamo.reset()
        compile_blocks(model, backend="aot_eager")
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (2, 22), generator=random).to(device)
    starts = torch.zeros(2, 21, dtype=torch.bool)
    starts[1, 9] = True
    with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
        loss = loss_of_rows(
            model, tokens[:, :-1], tokens[:, 1:], starts.to(device), predicted=42, positions=42
        )
    loss.backward()
    found = {name.replace("_orig_mod.", ""): p.grad.cpu() for name, p in model.named_parameters()}
    return loss.detach().cpu(), found


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of all gradients together, of the norm."""
    ours, theirs = (torch.cat([x.flatten() for x in each.values()]) for each in (found, expected))
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(
    "version",
    ["4", "6", "7", *(pytest.param(each, marks=pytest.mark.slow) for each in ("5.0", "5.1", "5.2"))],
)
def test_a_step_is_that_of_the_cpu(small_model, version):
    model = small_model(version, vocab_size=VOCABULARY)
    expected, dexpected = gradients(model, "cpu")
    loss, found = gradients(model, "cuda")
    torch.testing.assert_close(loss, expected, atol=0, rtol=1e-5)
    assert found.keys() == dexpected.keys()
    assert error(found, dexpected) < 1e-4
    # What rounding alone does to these gradients differs from model to model.
    _, rounded = gradients(model, "cpu", bf16=True)
    loss, found = gradients(model, "cuda", bf16=True)
    torch.testing.assert_close(loss, expected, atol=0, rtol=2e-3)
    assert error(found, dexpected) < 3 * error(rounded, dexpected)


# As errors, warnings of tensors that it looks at would end the compiler.
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_compiled_blocks_are_those_that_are_not(small_model, version):
    model = small_model(version, vocab_size=VOCABULARY)
    expected, dexpected = gradients(model, "cuda", bf16=True)
    loss, found = gradients(model, "cuda", bf16=True, compiled=True)
    torch.testing.assert_close(loss, expected, atol=0, rtol=1e-3)
    assert found.keys() == dexpected.keys()
    assert error(found, dexpected) < 0.02


@pytest.mark.parametrize("name", RIVALS)
def test_a_rivals_step_is_that_of_the_cpu(name):
    torch.manual_seed(0)
    model = build(sizes_for(name, vocab_size=VOCABULARY, width=32, num_layers=2, head_size=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected, dexpected = gradients(model, "cpu")
    loss, found = gradients(model, "cuda")
    torch.testing.assert_close(loss, expected, atol=0, rtol=1e-5)
    assert error(found, dexpected) < 1e-4


@pytest.mark.parametrize("adds", [True, False], ids=["adds to wider totals", "before torch 2.11"])
def test_the_gradient_of_a_head_is_added_up_by_what_torch_has(monkeypatch, adds):
    module: Any = import_module("rookery.ops.fused.cross_entropy")
    monkeypatch.setattr(module, "_ADDS_TO_WIDER", adds)
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 32, generator=random), torch.randn(VOCABULARY, 32, generator=random)
    targets = torch.randint(VOCABULARY, (64,), generator=random)
    found = {}
    for device in ("cpu", "cuda"):
        head = weight.to(device, copy=True).requires_grad_()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = linear_cross_entropy(x.to(device), head, targets.to(device), chunk=8)
        loss.backward()
        assert head.grad is not None
        found[device] = {"head": head.grad.cpu()}
    assert error(found["cuda"], found["cpu"]) < 1e-2


@pytest.fixture
def run_of(tmp_path):
    """``run_of(name, ...)``: the configuration of three steps of a tiny model, two rows of 16 in each."""
    (tmp_path / "text").write_text("It was a bright cold day in April. " * 20)

    def make(name: str, **options: Any) -> TrainConfig:
        sizes = {"layers": 1, "width": 32, "head_size": 16, "context": 16, "batch": 2, "tokens": 96}
        return TrainConfig(data=(str(tmp_path / "text"),), out=str(tmp_path / name), **(sizes | options))

    return make


def losses(result: TrainResult) -> list[float | None]:
    """Of each step, and of what was held out."""
    rows = read_metrics(result.run / "metrics.csv")
    return [row.valid_loss if row.loss is None else row.loss for row in rows]


def test_a_run_is_that_of_the_cpu(run_of):
    expected = losses(train(run_of("cpu", device="cpu")))
    found = losses(train(run_of("cuda", device="cuda", accumulate=2, recompute=True)))
    assert len(found) == 3 + 1
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_run_in_bfloat16_resumes_exactly(run_of):
    class Interrupter(SilentReporter):
        def step(self, row: Metrics, spent: float, seconds_left: float | None) -> None:
            if row.step == 1:
                os.kill(os.getpid(), signal.SIGINT)

    unbroken = train(run_of("unbroken", bf16=True, tokens=64))
    broken = train(run_of("broken", bf16=True, tokens=64), reporter=Interrupter())
    assert broken.step == 1
    assert losses(resume(broken.run)) == losses(unbroken)
