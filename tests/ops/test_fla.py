"""Parity with the plain-torch functions of fla-core (flash-linear-attention), which are not ours.

They take [B, H, T, K] and scale the receptance by 1 / sqrt(K); ours do not, so it is undone here. There is
none for RWKV-4 and 5; the latter is RWKV-6 with a decay that does not vary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rookery import ops
from rookery.ops.triton import DEVICES

with warnings.catch_warnings():
    # At import fla says that it has no GPU for its Triton kernels, and no Flash Attention; none is needed.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"fla\.utils")
    warnings.filterwarnings("ignore", category=ImportWarning, module=r"fla\.ops\.nsa\.")
    # Its torch.compile decorators load parts of torch that use what torch itself deprecates.
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=r"`torch\.jit\.script")
    from fla.ops.delta_rule.naive import delta_rule_chunkwise, delta_rule_recurrence
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_chunkwise, dplr_recurrence
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.rwkv6.chunk_naive import naive_chunk_rwkv6
    from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6

B, T, H, K, V = 2, 64, 3, 32, 32
IMPLEMENTATIONS = [
    (name, implementation)
    for name in ("wkv5", "wkv6", "wkv7")
    for implementation in ops.implementations(name)
]


def inputs(name: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    r, k, v, state = normal(B, T, H, K), normal(B, T, H, K), normal(B, T, H, V), normal(B, H, K, V)
    if name == "wkv7":
        log_w = -0.6065 * normal(B, T, H, K).sigmoid()
        removal = torch.nn.functional.normalize(normal(B, T, H, K), dim=-1)
        tensors = [r, log_w, k, v, -removal, removal * normal(B, T, H, K).sigmoid(), state]
    else:
        log_w = -normal(*((H, K) if name == "wkv5" else (B, T, H, K))).exp()
        tensors = [r, log_w, k, v, normal(H, K), state]
    return [x.requires_grad_() for x in tensors]


def theirs(name: str, function: Callable[..., tuple[Tensor, Tensor]], tensors: list[Tensor]):
    r, log_w, k, v, *rest, state = tensors
    scaled = r * K**0.5
    if name == "wkv7":
        q, k, v, a, b, log_w = (x.transpose(1, 2) for x in (scaled, k, v, *rest, log_w))
        y, after = function(q, k, v, a, b, log_w, initial_state=state)
    else:
        decays = log_w.expand_as(k)
        q, k, v, w = (x.transpose(1, 2) for x in (scaled, k, v, decays))
        y, after = function(q, k, v, w, rest[0], initial_state=state, output_final_state=True)
    return y.transpose(1, 2), after


def ours(name: str, tensors: list[Tensor], implementation: str) -> list[Tensor]:
    """On the device that the implementation runs on; the results are on the CPU, as theirs."""
    device = DEVICES[0] if implementation == "triton" else "cpu"
    made = getattr(ops, name)(*(x.to(device) for x in tensors), implementation=implementation)
    return [x.cpu() for x in made]


def assert_close(got: Tensor, wanted: Tensor, bound: float, what: str) -> None:
    assert (got - wanted).abs().max() < bound * wanted.abs().max(), what


@pytest.mark.parametrize(("name", "implementation"), IMPLEMENTATIONS)
def test_equals_the_naive_recurrence(name: str, implementation: str) -> None:
    tensors = inputs(name)
    function = dplr_recurrence if name == "wkv7" else naive_recurrent_rwkv6
    wanted = theirs(name, function, tensors)
    got = ours(name, tensors, implementation)
    for what, x, y in zip(("y", "state"), got, wanted, strict=True):
        assert_close(x, y, 1e-5, what)
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) for x in wanted]
    gradients = [torch.autograd.grad(outputs, tensors, weights) for outputs in (got, wanted)]
    for i, (x, y) in enumerate(zip(*gradients, strict=True)):
        assert_close(x, y, 1e-4, f"gradient of input {i}")


@pytest.mark.parametrize("implementation", ops.implementations("wkv7"))
def test_wkv7_equals_the_naive_chunked_form(implementation: str) -> None:
    tensors = inputs("wkv7")
    wanted = theirs("wkv7", dplr_chunkwise, tensors)
    got = ours("wkv7", tensors, implementation)
    for what, x, y in zip(("y", "state"), got, wanted, strict=True):
        assert_close(x, y, 1e-5, what)


@pytest.mark.parametrize("implementation", ops.implementations("wkv6"))
def test_wkv6_equals_the_naive_chunked_form(implementation: str) -> None:
    r, log_w, k, v, u, _ = (x.detach() for x in inputs("wkv6"))
    # This one does not scale.
    q, *others = (x.transpose(1, 2) for x in (r, k, v, log_w))
    wanted = naive_chunk_rwkv6(q, *others, u).transpose(1, 2)
    got, _ = ours("wkv6", [r, log_w, k, v, u], implementation)
    assert_close(got, wanted, 1e-5, "y")


def rivals_inputs(name: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    q, k, v, state = normal(B, T, H, K), normal(B, T, H, K), normal(B, T, H, V), normal(B, H, K, V)
    if name == "gla":
        tensors = [q, -normal(B, T, H, K).exp() / 4, k, v, state]
    else:
        tensors = [q, torch.nn.functional.normalize(k, dim=-1), v, normal(B, T, H).sigmoid(), state]
    return [x.requires_grad_() for x in tensors]


@pytest.mark.parametrize(
    ("name", "implementation"),
    [(name, each) for name in ("gla", "delta_rule") for each in ops.implementations(name)],
)
def test_rivals_equal_their_naive_recurrences(name: str, implementation: str) -> None:
    tensors = rivals_inputs(name)
    *inputs, state = tensors
    if name == "gla":
        q, log_alpha, k, v = inputs
        wanted = naive_recurrent_gla(q * K**0.5, k, v, log_alpha, state, output_final_state=True)
    else:
        q, k, v, beta = (x.transpose(1, 2) for x in inputs)
        y, after = delta_rule_recurrence(q * K**0.5, k, v, beta, state)
        wanted = y.transpose(1, 2), after
    got = ours(name, tensors, implementation)
    for what, x, y in zip(("y", "state"), got, wanted, strict=True):
        assert_close(x, y, 1e-5, what)
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) for x in wanted]
    gradients = [torch.autograd.grad(outputs, tensors, weights) for outputs in (got, wanted)]
    for i, (x, y) in enumerate(zip(*gradients, strict=True)):
        assert_close(x, y, 1e-4, f"gradient of input {i}")


@pytest.mark.parametrize("implementation", ops.implementations("delta_rule"))
def test_the_delta_rule_equals_the_naive_chunked_form(implementation: str) -> None:
    *inputs, _ = (x.detach() for x in rivals_inputs("delta_rule"))
    q, k, v, beta = (x.transpose(1, 2) for x in inputs)
    y, after = delta_rule_chunkwise(q * K**0.5, k, v, beta)
    got = ours("delta_rule", inputs, implementation)
    for what, x, z in zip(("y", "state"), got, (y.transpose(1, 2), after), strict=True):
        assert_close(x, z, 1e-5, what)
