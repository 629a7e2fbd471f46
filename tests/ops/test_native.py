"""The operators over C++: what torch asks of an operator, every instruction set, any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rookery import ops
from rookery.native import _engine

OPERATORS = ("wkv4", "wkv5", "wkv6", "wkv7")


def inputs(name: str, *, B: int = 2, T: int = 37, H: int = 2, K: int = 20, V: int = 35) -> list[Tensor]:
    """Random inputs, the last one the state."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if name == "wkv4":
        state = torch.stack([normal(B, K), normal(B, K).exp(), normal(B, K)], dim=1)
        tensors = [-normal(K).exp(), normal(K), normal(B, T, K), normal(B, T, K), state]
    else:
        decay = normal(H, K) if name == "wkv5" else normal(B, T, H, K)
        tensors = [normal(B, T, H, K), -decay.sigmoid(), normal(B, T, H, K), normal(B, T, H, V)]
        if name == "wkv7":
            removal = torch.nn.functional.normalize(normal(B, T, H, K), dim=-1)
            tensors += [-removal, removal * normal(B, T, H, K).sigmoid()]
        else:
            tensors.append(normal(H, K))
        tensors.append(normal(B, H, K, V))
    return [x.requires_grad_() for x in tensors]


def starts(B: int = 2, T: int = 37) -> Tensor:
    return torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.1


def results(name: str, tensors: list[Tensor], boundaries: Tensor | None) -> list[Tensor]:
    """y, the state and all gradients."""
    outputs = getattr(ops, name)(*tensors, starts=boundaries, implementation="native")
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, tensors, weights)]


def assert_close(got: list[Tensor], wanted: list[Tensor]) -> None:
    for x, y in zip(got, wanted, strict=True):
        assert (x - y).norm() <= 1e-5 * y.norm()


@pytest.fixture(params=_engine.available_instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _engine.instruction_set()
    _engine.force_instruction_set(request.param)
    yield request.param
    _engine.force_instruction_set(before)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("K", [16, 33, 64, 96])
def test_every_instruction_set(name: str, K: int, instruction_set: str) -> None:
    tensors = inputs(name, K=K)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    outputs = getattr(ops, name)(*exact, starts=starts(), implementation="reference")
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
    wanted = [*outputs, *torch.autograd.grad(outputs, exact, weights)]
    assert_close([x.double() for x in results(name, tensors, starts())], wanted)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("threads", [1, 3, 7])
def test_any_number_of_threads(name: str, threads: int) -> None:
    # 7 threads are more than heads: they share a head's value channels.
    tensors = inputs(name)
    wanted = results(name, tensors, starts())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = results(name, tensors, starts())
    finally:
        torch.set_num_threads(before)
    assert_close(got, wanted)
    assert torch.equal(got[0], wanted[0])


@pytest.mark.parametrize("name", ["wkv4", "wkv6", "wkv7"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_finds_no_fault_with_the_operators(name: str, dtype: torch.dtype) -> None:
    *tensors, state = inputs(name, T=5)
    fixed = {"wkv4": (0, 1), "wkv6": (4,), "wkv7": ()}[name]
    tensors = [
        x if i in fixed else x.detach().to(dtype).requires_grad_(x.requires_grad)
        for i, x in enumerate(tensors)
    ]
    operator = getattr(torch.ops.rookery, name).default
    for boundaries in (None, starts(T=5)):
        torch.library.opcheck(operator, (*tensors, state, boundaries, True))
        with torch.no_grad():
            torch.library.opcheck(operator, (*(x.detach() for x in (*tensors, state)), boundaries, False))


@pytest.mark.parametrize("name", OPERATORS)
def test_compiled_without_a_break(name: str) -> None:
    tensors, boundaries = inputs(name), starts()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(*x: Tensor) -> tuple[Tensor, Tensor]:
        y, state = getattr(ops, name)(*x, starts=boundaries)
        return y * 2, state * 2

    got, plain = compiled(*tensors), getattr(ops, name)(*tensors, starts=boundaries)
    for x, y in zip(got, plain, strict=True):
        assert torch.equal(x, y * 2)
    wanted = torch.autograd.grad([x.sum() * 2 for x in plain], tensors)
    assert_close(list(torch.autograd.grad([x.sum() for x in got], tensors)), list(wanted))


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_of_bfloat16_inputs(name: str) -> None:
    """The kernels read and write bfloat16; what lies between is float32."""
    half = [x.detach().bfloat16().requires_grad_() for x in inputs(name)]
    exact = [x.detach().float().requires_grad_() for x in half]
    got, wanted = results(name, half, starts()), results(name, exact, starts())
    assert torch.equal(got[0], wanted[0].bfloat16())
    # The last place of bfloat16; y's weights are rounded to it as well.
    for x, y in zip(got, wanted, strict=True):
        assert (x.float() - y).norm() <= 2**-8 * y.norm()


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("which", [0, 1])
def test_gradients_of_one_output(name: str, which: int) -> None:
    tensors = inputs(name)

    def gradients(implementation: str) -> list[Tensor]:
        output = getattr(ops, name)(*tensors, implementation=implementation)[which]
        return list(torch.autograd.grad(output.square().sum(), tensors, materialize_grads=True))

    for x, y in zip(gradients("native"), gradients("reference"), strict=True):
        assert (x - y).norm() <= 1e-4 * y.norm()


def test_arrays_that_do_not_fit_are_refused() -> None:
    r, log_w, k, v, a, b, state = (x.detach() for x in inputs("wkv7"))
    y, after = torch.empty_like(v), torch.empty_like(state)
    rest = (state, None, y, after, None, None)
    _engine.wkv7_forward(r, log_w, k, v, a, b, *rest, 1)
    with pytest.raises(ValueError, match="k has another shape"):
        _engine.wkv7_forward(r, log_w, k[:, 1:], v, a, b, *rest, 1)
    with pytest.raises(ValueError, match="r must be float32 or bfloat16"):
        _engine.wkv7_forward(r.double(), log_w, k, v, a, b, *rest, 1)
    with pytest.raises(ValueError, match="b's channels must lie together"):
        _engine.wkv7_forward(r, log_w, k, v, a, b.transpose(1, 3).contiguous().transpose(1, 3), *rest, 1)
    turned = state.mT.contiguous().mT
    with pytest.raises(ValueError, match="state must be contiguous"):
        _engine.wkv7_forward(r, log_w, k, v, a, b, turned, None, y, after, None, None, 1)
    with pytest.raises(ValueError, match="threads"):
        _engine.wkv7_forward(r, log_w, k, v, a, b, *rest, 0)
    with pytest.raises(ValueError, match="r and v need four axes"):
        _engine.wkv7_forward(r[0], log_w, k, v, a, b, *rest, 1)
