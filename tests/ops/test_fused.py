"""The fused operators against their formulas in float64, values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from rookery.config import sized
from rookery.errors import ConfigError, StateError
from rookery.models import RWKV
from rookery.ops import native
from rookery.ops.fused import (
    Mix7,
    add_norm,
    head_norm,
    operators,
    rwkv6_decay,
    rwkv7_inputs,
    rwkv7_output,
    shifted_products,
    sigmoid_gate,
    squared_relu,
    token_shift,
    wkv7_with_output,
)
from rookery.ops.fused.add_norm import add_norm_formula
from rookery.ops.fused.head_norm import head_norm_formula
from rookery.ops.fused.rwkv6_decay import rwkv6_decay_formula
from rookery.ops.fused.rwkv7_inputs import rwkv7_inputs_formula
from rookery.ops.fused.rwkv7_output import rwkv7_output_formula
from rookery.ops.fused.sigmoid_gate import sigmoid_gate_formula
from rookery.ops.fused.squared_relu import squared_relu_formula
from rookery.ops.fused.token_shift import token_shift_formula
from rookery.ops.triton import READS, interpreting

pytestmark = pytest.mark.usefixtures("watched_kernels")

B, T, H, K = 2, 37, 3, 21
A = H * K
row, vector = (B, T, A), (1, 1, A)


@dataclass
class Case:
    """An operator and its formula, as functions of tensors of these shapes."""

    shapes: list[tuple[int, ...]]
    fused: Callable[..., object]
    formula: Callable[..., object]
    only_triton: bool = False
    """Whether elsewhere torch computes it, with roundings of its own."""

    def inputs(
        self, dtype: torch.dtype, device: str = "cpu", *, parameters: torch.dtype | None = None
    ) -> list[Tensor]:
        """Random tensors; `parameters`: the dtype of those that are not [B, T, A]."""
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(shape, generator=generator) for shape in self.shapes]
        kinds = [dtype if parameters is None or shape == row else parameters for shape in self.shapes]
        return [x.to(device, kind).requires_grad_() for x, kind in zip(tensors, kinds, strict=True)]


def shift(starts: bool, to_present: bool) -> Callable[[Callable[..., object]], Callable[..., object]]:
    def bind(function: Callable[..., object]) -> Callable[..., object]:
        def call(x: Tensor, last: Tensor, *weights: Tensor) -> object:
            marks = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(1)) < 0.2
            marks[:, 0] = torch.arange(len(marks)) % 2 == 0
            boundaries = marks.to(x.device) if starts else None
            return function(x, last, weights, starts=boundaries, to_present=to_present)

        return call

    return bind


def inputs7(mixed: bool) -> Callable[[Callable[..., object]], Callable[..., object]]:
    def bind(function: Callable[..., object]) -> Callable[..., object]:
        def call(w, k, v, a, w0, a0, k_k, k_a, *mix) -> object:
            how = Mix7(*mix) if mixed else None
            results = function(w, k, v, a, how, w0=w0, a0=a0, k_k=k_k, k_a=k_a, heads=H)
            # In the first layer v is passed through as it is.
            return results if mixed else (*results[:2], *results[3:])

        return call

    return bind


def output7(function: Callable[..., object]) -> Callable[..., object]:
    def call(y, r, k, v, g, r_k, weight, bias) -> object:
        return function(y, r, k, v, g, r_k=r_k, weight=weight, bias=bias, heads=H, epsilon=64e-5)

    return call


def sum_and_norm(function: Callable[..., object]) -> Callable[..., object]:
    def call(x, y, weight, bias) -> object:
        return function(x, y, weight, bias, epsilon=1e-5)

    return call


def norm_alone(function: Callable[..., object]) -> Callable[..., object]:
    """With another use of x, whose gradient has to come through."""

    def call(x, weight, bias) -> object:
        return function(x, None, weight, bias, epsilon=1e-5)

    return call


def norm_of_heads(gated: bool) -> Callable[[Callable[..., object]], Callable[..., object]]:
    def bind(function: Callable[..., object]) -> Callable[..., object]:
        def call(y, *others) -> object:
            g, weight, bias = others if gated else (None, *others)
            return function(y, g, weight, bias, heads=H, epsilon=64e-5)

        return call

    return bind


def decay6(function: Callable[..., object]) -> Callable[..., object]:
    return lambda x, base: function(x, base, heads=H)


CASES = {
    "add_norm": Case([row, row, (A,), (A,)], sum_and_norm(add_norm), sum_and_norm(add_norm_formula), True),
    "norm alone": Case([row, (A,), (A,)], norm_alone(add_norm), norm_alone(add_norm_formula), True),
    "head_norm": Case(
        [row, row, (A,), (A,)],
        norm_of_heads(True)(head_norm),
        norm_of_heads(True)(head_norm_formula),
        True,
    ),
    "head_norm without a gate": Case(
        [row, (A,), (A,)], norm_of_heads(False)(head_norm), norm_of_heads(False)(head_norm_formula), True
    ),
    "decay6": Case([row, vector], decay6(rwkv6_decay), decay6(rwkv6_decay_formula), True),
    "sigmoid_gate": Case([row, row], sigmoid_gate, sigmoid_gate_formula, True),
    "squared_relu": Case([row], squared_relu, squared_relu_formula),
    "inputs7": Case(
        [*[row] * 4, *[vector] * 4, row, row, vector],
        inputs7(True)(rwkv7_inputs),
        inputs7(True)(rwkv7_inputs_formula),
    ),
    "inputs7 of the first layer": Case(
        [*[row] * 2, row, row, *[vector] * 4],
        inputs7(False)(rwkv7_inputs),
        inputs7(False)(rwkv7_inputs_formula),
    ),
    "output7": Case([*[row] * 5, (H, K), (A,), (A,)], output7(rwkv7_output), output7(rwkv7_output_formula)),
}
for name, weight in (("of the model", vector), ("of tokens", row)):
    for starts in (False, True):
        for to_present in (False, True):
            bind = shift(starts, to_present)
            words = f"token shift, weights {name}" + ", documents" * starts + ", to the present" * to_present
            CASES[words] = Case(
                [row, (B, A), weight, weight, weight], bind(token_shift), bind(token_shift_formula)
            )
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def results(function: Callable[..., object], tensors: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients to all inputs that have one."""
    outputs = function(*tensors)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(x.shape, generator=generator).to(x.device, x.dtype) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, tensors, weights, materialize_grads=True)]


def assert_close(got: list[Tensor], wanted: list[Tensor], bound: float) -> None:
    for i, (x, y) in enumerate(zip(got, wanted, strict=True)):
        assert (x.double() - y).norm() <= bound * y.norm(), i


NAMES = (
    "add_norm",
    "head_norm",
    "rwkv6_decay",
    "rwkv7_inputs",
    "rwkv7_output",
    "sigmoid_gate",
    "squared_relu",
    "token_shift",
)
MODULES = [import_module(f"rookery.ops.fused.{name}") for name in NAMES]
KERNELS = [] if native.kernels is None else native.kernels.available_instruction_sets()


@pytest.fixture(params=[*KERNELS, "triton"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device on which one set of kernels computes: C++ for each set of instructions, or Triton's.

    Where there is no GPU, Triton's run in its interpreter, in their place.
    """
    if request.param != "triton":
        before = native.kernels.instruction_set()
        native.kernels.force_instruction_set(request.param)
        yield "cpu"
        native.kernels.force_instruction_set(before)
    elif not interpreting():
        yield "cuda"
    else:
        for table in (operators.SERVED, operators.TRITON_SERVED):
            monkeypatch.setitem(table, "cpu", READS)
        for module in MODULES:
            for operator in ("_forward", "_backward"):
                # One that has kernels in Triton alone is defined by them.
                by_triton = getattr(module, f"{operator}_by_triton", getattr(module, operator)._init_fn)
                getattr(module, operator).register_kernel("cpu")(by_triton)
        yield "cpu"
        for operator in (each for module in MODULES for each in (module._forward, module._backward)):
            operator.register_kernel("cpu")(operator._init_fn)


only_triton = pytest.mark.parametrize("device", ["triton"], indirect=True)


@every_case
def test_equals_the_formula(case: Case, device: str) -> None:
    single = case.inputs(torch.float32, device)
    double = [x.detach().double().requires_grad_() for x in single]
    assert_close(results(case.fused, single), results(case.formula, double), 2e-6)


@every_case
def test_float64_is_the_formula(case: Case) -> None:
    tensors = case.inputs(torch.float64)
    for x, y in zip(results(case.fused, tensors), results(case.formula, tensors), strict=True):
        assert torch.equal(x, y)


@every_case
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
def test_bfloat16_is_rounded_at_the_ends_alone(case: Case, parameters: torch.dtype, device: str) -> None:
    """And outputs have the dtypes that the formula gives them."""
    if case.only_triton and device not in operators.TRITON_SERVED:
        pytest.skip("computed by torch, which adds up the gradients of a norm's weights in bfloat16")
    half = case.inputs(torch.bfloat16, device, parameters=parameters)
    exact = [x.detach().double().requires_grad_() for x in half]
    got = results(case.fused, half)
    # Several outputs are differences of rounded weights and gradients: a few last places of bfloat16.
    assert_close(got, results(case.formula, exact), 0.01)
    if not operators.narrows(device):
        assert [x.dtype for x in got] == [x.dtype for x in results(case.formula, half)]


# One of each operator.
every_operator = pytest.mark.parametrize(
    "name",
    [
        "add_norm",
        "norm alone",
        "head_norm",
        "head_norm without a gate",
        "decay6",
        "sigmoid_gate",
        "squared_relu",
        "inputs7",
        "output7",
        "token shift, weights of the model, documents",
        "token shift, weights of tokens, documents, to the present",
    ],
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, T), (1, 1)])
def test_weights_of_tokens_may_be_one_tensor(dtype: torch.dtype, shape: tuple[int, int], device: str) -> None:
    """Of one token as well, whose weights have the shape of those of a model."""
    case = CASES["token shift, weights of tokens"]
    streams, tokens = shape
    tensors = (each.detach()[:streams] for each in case.inputs(dtype, device))
    x, last, *weights = (each[:, :tokens] if each.dim() == 3 else each for each in tensors)
    wanted = results(case.fused, [each.clone().requires_grad_() for each in (x, last, *weights)])
    together = [each.clone().requires_grad_() for each in (x, last, torch.stack(weights))]
    *others, gradient = results(lambda x, last, weights: token_shift(x, last, weights), together)
    for found, each in zip((*others, *gradient), wanted, strict=True):
        assert torch.equal(found, each)


@only_triton
@every_operator
@pytest.mark.parametrize("tokens", [1, 5])
def test_triton_takes_few_tokens_of_float16_in_any_layout(name: str, tokens: int, device: str) -> None:
    case = CASES[name]
    half = [
        x.detach()[:, :tokens] if shape == row else x.detach()
        for x, shape in zip(case.inputs(torch.float16, device), case.shapes, strict=True)
    ]
    wanted = results(CASES[name].formula, [x.double().requires_grad_() for x in half])
    strided = [x.swapaxes(0, -1).contiguous().swapaxes(0, -1).requires_grad_() for x in half]
    assert_close(results(CASES[name].fused, strided), wanted, 2e-3)


@only_triton
@every_operator
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gpu_gets_results_in_the_dtype_that_matrix_products_read(
    name: str, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of inputs of 16 bits and float32 parameters, as they are under autocast."""
    monkeypatch.setattr(operators, "NARROWS", (device,))
    case = CASES[name]
    tensors = case.inputs(dtype, device, parameters=torch.float32)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    with torch.autocast(device, dtype):
        got = results(case.fused, tensors)
    assert_close(got, results(case.formula, exact), 0.01)
    count = len(got) - len(tensors)
    # In float16 the logarithms of slow decays would be lost.
    decays = [torch.float32] if name in ("inputs7", "decay6") and dtype == torch.float16 else []
    assert [x.dtype for x in got[:count]] == decays + [dtype] * (count - len(decays))
    assert [x.dtype for x in got[count:]] == [x.dtype for x in tensors]


@only_triton
def test_the_residual_stream_stays_wide_under_autocast(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 that a bfloat16 output of a layer is added to; each gets its gradient in its own dtype."""
    monkeypatch.setattr(operators, "NARROWS", (device,))
    case = CASES["add_norm"]
    x, y, weight, bias = case.inputs(torch.float32, device)
    y = y.detach().bfloat16().requires_grad_()
    exact = [each.detach().double().requires_grad_() for each in (x, y, weight, bias)]
    with torch.autocast(device, torch.bfloat16):
        total, normal, *gradients = results(case.fused, [x, y, weight, bias])
    dtypes = [each.dtype for each in (total, normal, *gradients)]
    assert dtypes == [torch.float32, torch.bfloat16, *(each.dtype for each in (x, y, weight, bias))]
    assert torch.equal(total, x + y)
    # Triton's interpreter cuts off what does not fit into bfloat16.
    assert_close([gradients[1]], [gradients[0].double()], 4e-3)
    wanted = results(case.formula, exact)
    assert_close([total], wanted[:1], 1e-7)
    assert_close([normal, *gradients], wanted[1:], 4e-3)


@only_triton
def test_gradients_of_a_norm_are_added_up_over_the_tiles_of_programs(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("rookery.ops.fused.add_norm"), "ENOUGH_PROGRAMS", 5)
    generator = torch.Generator().manual_seed(5)
    tensors = [torch.randn(shape, generator=generator) for shape in ((3, 1401, 16), (16,), (16,))]
    single = [x.to(device).requires_grad_() for x in tensors]
    double = [x.detach().double().requires_grad_() for x in single]
    case = CASES["norm alone"]
    assert_close(results(case.fused, single), results(case.formula, double), 2e-6)


@only_triton
def test_decays_of_a_model_in_bfloat16_that_is_not_trained_stay_exact(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "NARROWS", (device,))
    with torch.no_grad():
        found = CASES["inputs7"].fused(*CASES["inputs7"].inputs(torch.bfloat16, device))
    assert isinstance(found, tuple)
    assert [x.dtype for x in found] == [torch.float32, *[torch.bfloat16] * 4]


@only_triton
def test_sums_over_many_blocks(device: str) -> None:
    partials = torch.randn(70, 2, 133, generator=torch.Generator().manual_seed(4)).to(device)
    totals = [torch.empty(133, device=device), torch.empty(1, 1, 133, dtype=torch.bfloat16, device=device)]
    operators.add_up(partials, totals)
    wanted = partials.double().sum(0)
    assert_close([totals[0]], [wanted[0]], 1e-6)
    assert_close([totals[1].view(-1)], [wanted[1]], 4e-3)


@every_case
def test_any_number_of_threads_and_any_layout(case: Case) -> None:
    tensors = case.inputs(torch.float32)
    wanted = [x.detach().double() for x in results(case.fused, tensors)]
    strided = [x.detach().swapaxes(0, -1).contiguous().swapaxes(0, -1).requires_grad_() for x in tensors]
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        assert_close(results(case.fused, strided), wanted, 1e-6)
    finally:
        torch.set_num_threads(before)


@every_case
def test_threads_share_long_rows(case: Case) -> None:
    """So many tokens that the ranges of several threads meet inside rows, at the same sums each time."""
    shapes = [(2, 400, A) if shape == row else shape for shape in case.shapes]
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = results(case.fused, tensors)
        torch.set_num_threads(3)
        got, again = results(case.fused, tensors), results(case.fused, tensors)
    finally:
        torch.set_num_threads(before)
    assert_close(got, [x.double() for x in wanted], 1e-6)
    for x, y in zip(got, again, strict=True):
        assert torch.equal(x, y)


def test_a_key_of_zero_has_no_direction() -> None:
    case = CASES["inputs7"]
    tensors = case.inputs(torch.float32)
    with torch.no_grad():
        tensors[1][:, :5] = 0
    double = [x.detach().double().requires_grad_() for x in tensors]
    got, wanted = results(case.fused, tensors), results(case.formula, double)
    assert all(torch.isfinite(x).all() for x in got[:5])
    assert_close(got[:5], wanted[:5], 2e-6)


def test_squared_relu_keeps_what_the_next_product_keeps() -> None:
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    [x] = CASES["squared_relu"].inputs(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = squared_relu(x)
    assert [each.data_ptr() for each in kept] == [y.data_ptr()]


OPERATORS = torch.ops.rookery


def test_torch_finds_no_fault_with_the_operators() -> None:
    def tensors(case: str) -> list[Tensor]:
        return CASES[case].inputs(torch.float32)

    x, last, *weights = tensors("token shift, weights of the model")
    torch.library.opcheck(OPERATORS.token_shift.default, (x, last, weights, None, False, False, None))
    torch.library.opcheck(OPERATORS.squared_relu.default, (x,))
    w, k, v, a, w0, a0, k_k, k_a, first, share, v0 = tensors("inputs7")
    vectors = [w0, a0, v0, k_k, k_a]
    torch.library.opcheck(OPERATORS.rwkv7_inputs.default, ([w, k, a], vectors, H, None, False))
    torch.library.opcheck(
        OPERATORS.rwkv7_inputs.default, ([w, k, a, v, first, share], vectors, H, torch.bfloat16, True)
    )
    *inputs, r_k, weight, bias = tensors("output7")
    torch.library.opcheck(OPERATORS.rwkv7_output.default, (inputs, [r_k, weight, bias], H, 64e-5, None))


MATRICES = [(A, rank) for rank in (5, 16, 20)]


def products(starts: bool, with_last: bool) -> Callable[..., list[Tensor]]:
    """Of x, the input before it, two weights of shifted inputs, and three weights and matrices."""

    def call(x: Tensor, last: Tensor, *parameters: Tensor) -> list[Tensor]:
        marks = None
        if starts:
            marks = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(1)).to(x.device) < 0.2
            marks[0, 0], marks[1, 0] = True, False
        pairs = list(zip((*parameters[1:3], parameters[0]), parameters[3:], strict=True))
        shifted, multiplied = shifted_products(
            x,
            last if with_last else None,
            parameters[:2],
            pairs,
            starts=marks,
        )
        return [*shifted, *multiplied]

    return call


def products_inputs(dtype: torch.dtype, device: str, parameters: torch.dtype | None = None) -> list[Tensor]:
    case = Case([row, (B, A), vector, vector, vector, *MATRICES], lambda: None, lambda: None)
    return case.inputs(dtype, device, parameters=parameters)


@pytest.fixture
def folds(device: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets short rows have folded matrices; the names of what was called."""
    monkeypatch.setattr(operators, "NARROWS", (device,))
    module = import_module("rookery.ops.fused.shifted_products")
    monkeypatch.setattr(module, "FEWEST_TOKENS", T)
    called: list[str] = []
    for name in ("_fold", "_fold_backward", "_add_previous", "_spread"):
        operator = getattr(module, name)

        def call(*arguments: object, made: Callable[..., object] = operator._init_fn, name: str = name):
            called.append(name)
            return made(*arguments)

        operator.register_kernel("cpu")(call)
    return called


@only_triton
@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("with_last", [False, True])
def test_products_of_shifted_inputs_that_are_never_made(
    starts: bool, with_last: bool, device: str, folds: list[str]
) -> None:
    single = products_inputs(torch.float32, device)
    double = [x.detach().double().requires_grad_() for x in single]
    call = products(starts, with_last)

    def outputs(tensors: list[Tensor]) -> list[Tensor]:
        found = results(call, tensors)
        # Without an input before x, that has no gradient.
        return found if with_last else [each for i, each in enumerate(found) if i != len(found) - 7]

    got = outputs(single)
    assert folds == ["_fold", "_add_previous", "_spread", "_fold_backward"] or device == "cuda"
    assert_close(got, outputs(double), 2e-6)


@only_triton
def test_products_of_shifted_inputs_under_autocast(device: str, folds: list[str]) -> None:
    half = products_inputs(torch.bfloat16, device, parameters=torch.float32)
    exact = [x.detach().double().requires_grad_() for x in half]
    call = products(True, True)
    with torch.autocast(device, torch.bfloat16):
        got = results(call, half)
    assert [each.dtype for each in got[:5]] == [torch.bfloat16] * 5
    assert_close(got, results(call, exact), 0.02)


@only_triton
@pytest.mark.parametrize("tokens", [T, 5])
def test_torch_compiles_products_of_shifted_inputs_in_one_graph(
    tokens: int, device: str, folds: list[str]
) -> None:
    x, *others = products_inputs(torch.float32, device)
    tensors = [x.detach()[:, :tokens].clone().requires_grad_(), *others]
    call = products(False, True)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(results(compiled, tensors), results(call, tensors), strict=True):
        assert torch.equal(got, wanted)
    assert bool(folds) == (tokens == T and device == "cpu")


@only_triton
def test_few_tokens_and_modules_are_multiplied_by_as_they_are(
    device: str, folds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _, weight, other, *_, matrix = products_inputs(torch.float32, device)
    module = torch.nn.Linear(A, MATRICES[-1][1], bias=False, device=device)
    module.weight = torch.nn.Parameter(matrix.detach().T.contiguous())
    (shifted,), (found,) = shifted_products(x, None, [weight], [(other, module)])
    (few,), (found_of_few,) = shifted_products(x[:, :5], None, [weight], [(other, matrix)])
    assert not folds
    (wanted,) = token_shift(x, None, [other])
    assert_close([found, found_of_few], [wanted @ matrix, wanted[:, :5] @ matrix], 1e-6)
    assert_close([few], [shifted[:, :5]], 1e-6)


@only_triton
@pytest.mark.parametrize("version", ["4", "6", "7"])
def test_a_model_as_a_gpu_computes_it(version: str, device: str, folds: list[str], as_one: list[str]) -> None:
    """Its norms, shifts and recurrence by Triton's kernels, documents and a state before them."""
    torch.manual_seed(6)
    model = RWKV(sized(version, vocab_size=50, width=64, num_layers=2)).to(device)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(50, (2, T + 1), device=device)
    starts = torch.rand(2, T, device=device) < 0.1
    with torch.no_grad():
        _, state = model(tokens[:, :9], implementation="reference")

    def run(like: RWKV, implementation: str) -> list[Tensor]:
        logits, _ = like(tokens[:, :-1], state, starts=starts, implementation=implementation)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        return [logits, *torch.autograd.grad(loss, list(like.parameters()))]

    got = run(model, "triton")
    assert bool(folds) == bool(as_one) == (version == "7" and device == "cpu")
    with torch.no_grad():
        model.double()
    state = tree_map(lambda x: x.double(), state)
    for i, (x, y) in enumerate(zip(got, run(model, "reference"), strict=True)):
        assert (x.double() - y).norm() <= 1e-4 * y.norm() + 1e-9, i


@pytest.fixture
def as_one(device: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets the gradient of the bonus be computed where there is no GPU; the names of what was called."""
    operator = import_module("rookery.ops.fused.rwkv7_output")._bonus_backward
    called: list[str] = []

    def call(*arguments: object):
        called.append("bonus")
        return operator._init_fn(*arguments)

    operator.register_kernel("cpu")(call)
    return called


def read_inputs(dtype: torch.dtype, device: str, *, strong: bool) -> list[Tensor]:
    """r, log_w, k, v, a, b, g, the state, r_k, weight, bias; some chunks forget all, if strong."""
    generator = torch.Generator().manual_seed(8)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    log_w = -0.6 * normal(*row).sigmoid()
    if strong:
        log_w[:, 3] = -50
    kappa = torch.nn.functional.normalize(normal(B, T, H, K), dim=-1).flatten(-2)
    inputs = [normal(*row), log_w, normal(*row), normal(*row), -kappa, kappa * normal(*row).sigmoid()]
    inputs = [x.to(dtype) for x in (*inputs, normal(*row))]
    others = [normal(B, H, K, K), normal(H, K), normal(A), normal(A)]
    return [x.to(device).requires_grad_() for x in (*inputs, *others)]


def read(implementation: str, starts: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        marks = None
        if starts:
            marks = torch.rand(B, T, generator=torch.Generator().manual_seed(1)).to(tensors[0].device) < 0.1
        *inputs, r_k, weight, bias = tensors
        vectors = {"r_k": r_k, "weight": weight, "bias": bias}
        return wkv7_with_output(
            *inputs, **vectors, epsilon=64e-5, starts=marks, implementation=implementation
        )

    return call


@only_triton
@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("starts", [False, True])
def test_a_recurrence_and_its_output_as_one(
    strong: bool, starts: bool, device: str, as_one: list[str]
) -> None:
    single = read_inputs(torch.float32, device, strong=strong)
    double = [x.detach().double().requires_grad_() for x in single]
    got = results(read("triton", starts), single)
    assert as_one or device == "cuda"
    assert_close(got, results(read("reference", starts), double), 2e-5)


@only_triton
def test_a_recurrence_and_its_output_under_autocast(
    device: str, as_one: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "NARROWS", (device,))
    half = read_inputs(torch.bfloat16, device, strong=False)
    double = [x.detach().double().requires_grad_() for x in half]
    with torch.autocast(device, torch.bfloat16):
        got = results(read("triton", True), half)
    assert [x.dtype for x in got[:2]] == [torch.bfloat16, torch.float32]
    assert_close(got, results(read("reference", True), double), 0.02)


@only_triton
def test_a_recurrence_with_its_output_is_checked_as_one_alone(device: str, as_one: list[str]) -> None:
    tensors = read_inputs(torch.float32, device, strong=False)
    *inputs, state, r_k, weight, bias = tensors
    vectors = {"r_k": r_k, "weight": weight, "bias": bias, "epsilon": 64e-5}
    with pytest.raises(StateError, match="the state has shape"):
        wkv7_with_output(*inputs, state[:, :1], **vectors)
    with pytest.raises(ConfigError, match="starts is"):
        wkv7_with_output(*inputs, state, starts=torch.zeros(B, 1, device=device), **vectors)
    # Whatever a state holds, a document that starts with the row must not see it.
    starts = torch.zeros(B, T, dtype=torch.bool, device=device)
    starts[:, 0] = True
    found, after = wkv7_with_output(
        *inputs, state.detach() * torch.nan, starts=starts, implementation="triton", **vectors
    )
    assert as_one == []
    assert torch.isfinite(found).all()
    assert torch.isfinite(after).all()


@only_triton
def test_torch_compiles_a_recurrence_and_its_output_in_one_graph(device: str, as_one: list[str]) -> None:
    tensors = read_inputs(torch.float32, device, strong=False)
    compiled = torch.compile(read("triton", False), fullgraph=True, backend="aot_eager")
    for x, y in zip(results(compiled, tensors), results(read("triton", False), tensors), strict=True):
        assert torch.equal(x, y)


@only_triton
def test_torch_finds_no_fault_with_products_of_shifted_inputs(device: str, folds: list[str]) -> None:
    _, last, *parameters = products_inputs(torch.float32, device)
    weights, matrices = parameters[:3], parameters[3:]
    torch.library.opcheck(OPERATORS.fold_shifts.default, (matrices, weights, torch.float32))
    sums = torch.randn(B, T, 2 * A, device=device, requires_grad=True)
    starts = torch.rand(B, T, device=device) < 0.2
    for arguments in ((sums, last, starts), (sums, None, None)):
        torch.library.opcheck(OPERATORS.add_previous.default, arguments)


@only_triton
def test_torch_finds_no_fault_with_the_sum_and_its_norm(device: str) -> None:
    x, y, weight, bias = (each.detach() for each in CASES["add_norm"].inputs(torch.float32, device))
    for added, narrow in ((y.bfloat16(), torch.bfloat16), (None, None)):
        torch.library.opcheck(OPERATORS.add_norm.default, (x, added, weight, bias, 1e-5, narrow))
        arguments = (x, weight, bias, x, y, 1e-5, narrow)
        torch.library.opcheck(OPERATORS.add_norm_backward.default, arguments)


@only_triton
def test_torch_finds_no_fault_with_norms_gates_and_decays_of_heads(device: str) -> None:
    y, g, weight, bias = CASES["head_norm"].inputs(torch.float32, device)
    for gate in (g, None):
        arguments = (y, gate, weight, bias, H, 64e-5, torch.bfloat16)
        torch.library.opcheck(OPERATORS.head_norm.default, arguments)
    torch.library.opcheck(OPERATORS.sigmoid_gate.default, (y, g, None))
    torch.library.opcheck(OPERATORS.rwkv6_decay.default, (y, weight, H, False))


@only_triton
def test_torch_compile_sees_through_autocast(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one graph for all, and the dtypes of a GPU."""
    monkeypatch.setattr(operators, "NARROWS", (device,))
    case = CASES["inputs7"]
    tensors = case.inputs(torch.float32, device)

    def call(*tensors: Tensor) -> list[Tensor]:
        with torch.autocast(device, torch.bfloat16):
            made = case.fused(*tensors)
            assert isinstance(made, tuple)
            (shifted,) = token_shift(tensors[0], None, [tensors[4]])
            total, normal = add_norm(tensors[0], shifted, tensors[4][0, 0], tensors[5][0, 0], epsilon=1e-5)
            same, again = add_norm(total, None, tensors[4][0, 0], tensors[5][0, 0], epsilon=1e-5)
        return [*made, shifted, same, normal, again]

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for x, y in zip(results(compiled, tensors), results(call, tensors), strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)
