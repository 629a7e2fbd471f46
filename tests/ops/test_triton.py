"""The operators over Triton kernels: what torch asks of an operator, and what the recurrences' suite leaves.

Every recurrence with a row "triton" in its table takes part. Where there is a GPU the kernels run on it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rookery import ops
from rookery.ops.triton import interpreting
from rookery.ops.wkv7 import triton as wkv7_module

OPERATORS = [
    name
    for name in ("wkv4", "wkv5", "wkv6", "wkv7", "gla", "delta_rule")
    if "triton" in ops.implementations(name)
]
# Those whose operator is another recurrence's.
BY_ANOTHER = ("wkv5", "gla", "delta_rule")
DEVICE = "cpu" if interpreting() or not torch.cuda.is_available() else "cuda"

pytestmark = [
    pytest.mark.skipif(DEVICE == "cpu" and not interpreting(), reason="needs a GPU or TRITON_INTERPRET=1"),
    pytest.mark.usefixtures("watched_kernels"),
]


def inputs(name: str, *, T: int = 19, log_w: float | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """Random inputs, the last one the state; `log_w` is all decays, where not random."""
    B, H, K, V = 2, 1, 20, 35
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def decays(*shape: int) -> Tensor:
        drawn = -normal(*shape).sigmoid()
        return drawn if log_w is None else torch.full_like(drawn, log_w)

    fixed: tuple[int, ...] = ()
    if name == "wkv4":
        state = torch.stack([normal(B, K), normal(B, K).exp(), normal(B, K)], dim=1)
        tensors, fixed = [decays(K), normal(K), normal(B, T, K), normal(B, T, K)], (0, 1)
    else:
        r, k, v, state = normal(B, T, H, K), normal(B, T, H, K), normal(B, T, H, V), normal(B, H, K, V)
        if name == "delta_rule":
            k = torch.nn.functional.normalize(k, dim=-1)
            tensors = [r, k, v, normal(B, T, H).sigmoid()]
        else:
            tensors = [r, decays(H, K) if name == "wkv5" else decays(B, T, H, K), k, v]
        if name == "wkv7":
            removal = torch.nn.functional.normalize(normal(B, T, H, K), dim=-1)
            tensors += [-removal, removal * normal(B, T, H, K).sigmoid()]
        elif name in ("wkv5", "wkv6"):
            tensors.append(normal(H, K))
            fixed = (1, 4) if name == "wkv5" else (4,)
    tensors = [x if i in fixed else x.to(dtype) for i, x in enumerate(tensors)]
    return [x.to(DEVICE).requires_grad_() for x in (*tensors, state)]


def starts(T: int = 19) -> Tensor:
    marks = torch.rand(2, T, generator=torch.Generator().manual_seed(1)) < 0.1
    marks[1, T // 2] = True
    return marks.to(DEVICE)


def results(name: str, tensors: list[Tensor], boundaries: Tensor | None, implementation: str) -> list[Tensor]:
    """y, the state and all gradients."""
    outputs = getattr(ops, name)(*tensors, starts=boundaries, implementation=implementation)
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, tensors, weights)]


def assert_close(got: list[Tensor], wanted: list[Tensor], bound: float = 1e-5) -> None:
    # Numbers below have fewer digits, of which tensor cores read still fewer.
    least = torch.finfo(torch.float32).tiny
    for i, (x, y) in enumerate(zip(got, wanted, strict=True)):
        assert (x - y).double().norm() <= bound * y.double().norm() + least, i


class Recorder(TorchDispatchMode):
    """Keeps the project's operators that run, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "rookery":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "dtype", "boundaries"),
    [
        *((name, torch.bfloat16, True) for name in OPERATORS),
        *(
            pytest.param(name, torch.float32, False, marks=pytest.mark.slow)
            for name in OPERATORS
            if name not in BY_ANOTHER
        ),
    ],
)
def test_torch_finds_no_fault_with_the_operators(name: str, dtype: torch.dtype, boundaries: bool) -> None:
    """Neither with those of a training step nor with that of a call without gradients."""
    tensors = inputs(name, T=5, dtype=dtype)
    marks = starts(T=5) if boundaries else None
    with Recorder() as recorder:
        results(name, tensors, marks, "triton")
        with torch.no_grad():
            getattr(ops, name)(*tensors, starts=marks, implementation="triton")
    assert len(recorder.calls) >= 3
    for i, (operator, arguments) in enumerate(recorder.calls):
        differentiable = i == 0
        copies = [
            x.detach().clone().requires_grad_(differentiable and x.is_floating_point())
            if isinstance(x, Tensor)
            else x
            for x in arguments
        ]
        with torch.set_grad_enabled(differentiable):
            torch.library.opcheck(operator, tuple(copies))


@pytest.mark.parametrize("name", OPERATORS)
def test_compiled_without_a_break(name: str) -> None:
    tensors, boundaries = inputs(name), starts()

    def function(*x: Tensor) -> tuple[Tensor, Tensor]:
        y, state = getattr(ops, name)(*x, starts=boundaries, implementation="triton")
        return y * 2, state * 2

    got = torch.compile(function, backend="aot_eager", fullgraph=True)(*tensors)
    plain = function(*tensors)
    for x, y in zip(got, plain, strict=True):
        assert torch.equal(x, y)
    gradients, wanted = (torch.autograd.grad([x.sum() for x in outputs], tensors) for outputs in (got, plain))
    assert_close(list(gradients), list(wanted), 1e-6)


@pytest.mark.parametrize(
    ("name", "log_w"),
    [
        pytest.param(name, x, marks=[pytest.mark.slow] if name in BY_ANOTHER and x != -50.0 else [])
        for name in OPERATORS
        for x in (-1e-3, -6.0, -50.0)
    ],
)
def test_equals_the_loop_at_any_decay(name: str, log_w: float) -> None:
    tensors = inputs(name, log_w=log_w)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    got, wanted = (
        results(name, x, starts(), which) for x, which in ((tensors, "triton"), (exact, "reference"))
    )
    assert_close(got[:2], wanted[:2])
    assert_close(got[2:], wanted[2:], 1e-4)


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_of_bfloat16_inputs(name: str) -> None:
    """The kernels read and write bfloat16; what lies between is float32, or products of TF32 on a GPU."""
    half = inputs(name, dtype=torch.bfloat16)
    exact = [x.detach().float().requires_grad_() for x in half]
    got, wanted = results(name, half, starts(), "triton"), results(name, exact, starts(), "triton")
    # The last place of bfloat16, where the interpreter cuts off what a GPU rounds.
    assert_close([x.float() for x in got], wanted, 2**-7 if interpreting() else 6e-3)


@pytest.mark.parametrize("name", [x for x in OPERATORS if x not in BY_ANOTHER])
@pytest.mark.parametrize("which", [0, 1])
def test_gradients_of_one_output(name: str, which: int) -> None:
    tensors = inputs(name)

    def gradients(implementation: str) -> list[Tensor]:
        output = getattr(ops, name)(*tensors, implementation=implementation)[which]
        return list(torch.autograd.grad(output.square().sum(), tensors, materialize_grads=True))

    assert_close(gradients("triton"), gradients("reference"), 1e-4)


@pytest.mark.parametrize("name", [x for x in OPERATORS if x in ("wkv5", "wkv6", "gla")])
def test_a_channel_may_forget_at_once(name: str) -> None:
    """Strong and weak decays side by side, and in turns: small gradients are not lost in large ones."""
    tensors = inputs(name, T=33)
    with torch.no_grad():
        decay = tensors[1]
        decay[..., ::3] = -7.0
        decay[..., 1::3] *= 1e-2
        if name != "wkv5":
            decay[:, ::5] = -90.0
    exact = [x.detach().double().requires_grad_() for x in tensors]
    got, wanted = results(name, tensors, None, "triton"), results(name, exact, None, "reference")
    assert_close(got, wanted)
    for channels in (slice(0, None, 3), slice(1, None, 3), slice(2, None, 3)):
        assert_close([got[3][..., channels]], [wanted[3][..., channels]])


def test_stretches_of_a_row_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wkv7_module, "SPAN", 1)
    monkeypatch.setattr(wkv7_module, "SHORTEST_STRETCH", 1)
    T = 67
    assert wkv7_module.forward_stretch(5, 2) == wkv7_module.backward_stretch(5, 2, 264) == 1
    tensors, boundaries = inputs("wkv7", T=T), starts(T)
    # One stretch, in which a document begins, goes token by token: either way goes on where the other ended.
    strong = torch.where(torch.arange(T, device=DEVICE) // 8 == 4, 12.0, 1.0)
    tensors[1] = (tensors[1].detach() * strong[:, None, None]).requires_grad_()
    exact = [x.detach().double().requires_grad_() for x in tensors]
    wanted = results("wkv7", exact, boundaries, "reference")
    assert_close(results("wkv7", tensors, boundaries, "triton"), wanted)
    with torch.no_grad():
        got = ops.wkv7(*tensors, starts=boundaries, implementation="triton")
    assert_close(list(got), [x.detach() for x in wanted[:2]])


@pytest.mark.parametrize("chunk", [0, 1])
def test_a_chunk_of_strong_decays_takes_its_span_along(chunk: int) -> None:
    T = 35
    tensors = [x.detach() for x in inputs("wkv7", T=T)]
    tensors[1] *= torch.where(torch.arange(T, device=DEVICE) // 16 == chunk, 12.0, 1.0)[:, None, None]
    wanted = ops.wkv7(*(x.double() for x in tensors), implementation="reference")
    assert_close(list(ops.wkv7(*tensors, implementation="triton")), list(wanted))


def test_stretches_of_several_chunks_backward_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wkv7_module, "SHORTEST_STRETCH", 1)
    T = 130
    assert (wkv7_module.backward_stretch(3, 2, 264), wkv7_module.forward_stretch(3, 2)) == (1, 3)
    tensors = inputs("wkv7", T=T)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    wanted = results("wkv7", exact, None, "reference")
    assert_close(results("wkv7", tensors, None, "triton"), wanted)


def test_rows_are_cut_where_heads_are_few() -> None:
    """Backward, an H100 holds 132 programs of eight warps; forward, 264 of four."""
    assert wkv7_module.forward_stretch(256, 32) == 32
    assert (wkv7_module.backward_stretch(256, 32, 132), wkv7_module.backward_stretch(256, 32, 264)) == (
        64,
        32,
    )
    # Two turns of which the second is half empty become three of half the length.
    assert wkv7_module.backward_stretch(256, 192, 132) == 128
    # Two stretches are not worth three passes forward; nor one backward, that an H100 holds as they are.
    for spans, heads in ((256, 128), (256, 512), (256, 264), (7, 32), (1, 1)):
        assert wkv7_module.backward_stretch(spans, heads, 132) == spans
        assert wkv7_module.forward_stretch(spans, heads) == spans
