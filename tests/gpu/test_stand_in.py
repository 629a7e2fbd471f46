"""The stand-in for a GPU does what a GPU does, and refuses what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.usefixtures("on_a_stand_in")


def _record(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def test_it_computes_as_the_cpu_does():
    left, right = torch.randn(5, 7), torch.randn(7, 3)
    made = (left.cuda() @ right.cuda()).relu()
    assert made.device == torch.device("cuda", 0)
    assert torch.equal(made.cpu(), (left @ right).relu())
    assert made[1:3, 1].tolist() == (left @ right).relu()[1:3, 1].tolist()


def test_autograd_and_autocast_go_by_the_device():
    x, weight = torch.randn(4, 8, device="cuda"), torch.randn(8, 8, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        product = x @ weight
    assert product.dtype == torch.bfloat16
    product.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.is_cuda
    torch.testing.assert_close(weight.grad, x.sum(0)[:, None].expand(8, 8), atol=0.1, rtol=0.02)


def test_results_that_are_given_grow_and_views_share():
    x, result = torch.arange(6.0, device="cuda"), torch.empty(0, device="cuda")
    torch.cumsum(x, 0, out=result)
    assert result.tolist() == [0, 1, 3, 6, 10, 15]
    result.view(2, 3)[1].zero_()
    assert result.tolist() == [0, 1, 3, 0, 0, 0]


def test_its_random_numbers_repeat():
    drawn = [
        torch.randn(3, device="cuda", generator=torch.Generator("cuda").manual_seed(5)) for _ in range(2)
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    "operator", [torch.add, torch.matmul, lambda a, b: torch.cat([a, b]), torch.nn.functional.linear]
)
def test_tensors_of_two_devices_are_refused(operator: Callable[[Tensor, Tensor], Tensor]):
    with pytest.raises(RuntimeError, match="device"):
        operator(torch.ones(2, 2, device="cuda"), torch.ones(2, 2))


def test_a_number_may_be_on_the_cpu():
    assert (torch.ones(2, device="cuda") * torch.tensor(3.0)).tolist() == [3, 3]


def test_there_is_one():
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.empty(0, device="cuda:1")


def test_operators_without_a_kernel_for_it_are_refused():
    torch.library.define("test_stand_in::cpu_alone", "(Tensor x) -> Tensor")
    torch.library.impl("test_stand_in::cpu_alone", "cpu", lambda x: x + 1)
    cpu_alone = torch.ops.test_stand_in.cpu_alone
    assert cpu_alone(torch.ones(1)).tolist() == [2]
    with pytest.raises(NotImplementedError, match="cpu_alone has no kernel for cuda"):
        cpu_alone(torch.ones(1, device="cuda"))


def test_memory_that_nobody_wrote_is_nan():
    assert torch.empty(3, device="cuda").isnan().all()
    assert torch.empty(3, device="cuda", dtype=torch.bfloat16).isnan().all()


def test_a_kernel_refuses_a_tensor_of_the_cpu():
    from rookery.ops.fused.kernels.squared_relu import forward

    x = torch.ones(8)
    with pytest.raises(ValueError, match="cpu tensor"):
        forward[(1,)](x.cuda(), x, 8, BLOCK=8)


def test_recording_does_nothing_and_a_replay_all():
    x, total = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    kept: list[Tensor] = []

    def run() -> None:
        kept.append(x * 2)
        total.add_(kept[0])
        total[:1].mul_(10)

    graph = _record(run)
    assert total.tolist() == [0, 0, 0]
    assert kept[0].isnan().all()
    graph.replay()
    assert total.tolist() == [20, 2, 2]
    x.fill_(5)
    graph.replay()
    assert kept[0].tolist() == [10, 10, 10]
    assert total.tolist() == [300, 12, 12]


def test_a_kernel_by_itself_is_recorded():
    from rookery.ops.fused import squared_relu

    x, y = torch.ones(8, device="cuda"), torch.zeros(8, device="cuda")
    graph = _record(lambda: y.copy_(squared_relu(x)))
    x.fill_(3)
    assert y.tolist() == [0] * 8
    graph.replay()
    assert y.tolist() == [9] * 8


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=x.device),
        lambda x: torch.cuda.synchronize(),
    ],
    ids=["item", "cpu", "tolist", "bool", "mask", "nonzero", "from the cpu", "a new tensor", "synchronize"],
)
def test_waiting_while_recording_is_refused(wait: Callable[[Tensor], object]):
    x = torch.ones(3, device="cuda")
    with torch.inference_mode(), pytest.raises(RuntimeError, match="capturing"):
        _record(lambda: wait(x))
    _record(lambda: x.add_(1)).replay()
    assert x.tolist() == [2, 2, 2]
