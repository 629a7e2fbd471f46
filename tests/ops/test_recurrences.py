"""One suite for every recurrence and every implementation of it, against the sequential loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rookery import ops
from rookery.errors import ConfigError, StateError
from rookery.ops.triton import interpreting

pytestmark = pytest.mark.usefixtures("watched_kernels")

OPERATORS = ("wkv4", "wkv5", "wkv6", "wkv7", "gla", "delta_rule")
# Inputs without a time axis.
FIXED = {"wkv4": (0, 1), "wkv5": (1, 4), "wkv6": (4,)}
# Later implementations join by being in the table. Triton's kernels run here in its interpreter, on a CPU.
ALL = [
    (name, implementation)
    for name in OPERATORS
    for implementation in ops.implementations(name)
    if implementation != "triton" or interpreting()
]
# Everything but the loop itself.
COMPARED = [(name, implementation) for name, implementation in ALL if implementation != "reference"]
# gradcheck needs float64, which the kernels leave to torch.
DOUBLE = [
    (name, implementation) for name, implementation in ALL if implementation not in ("native", "triton")
]
STRONGEST_DECAY_OF_7 = 0.6065
# Those whose kernels are of another recurrence; `test_triton.py` has a short test of each.
BY_ANOTHER = ("wkv5", "gla", "delta_rule")


def short(rows: list[tuple[str, str]]) -> list[Any]:
    """For a test of few tokens: Triton's interpreter takes milliseconds for each."""
    return [
        pytest.param(*row, marks=[pytest.mark.slow] if row[1] == "triton" and row[0] in BY_ANOTHER else [])
        for row in rows
    ]


def long(rows: list[tuple[str, str]]) -> list[Any]:
    """For a test of many tokens."""
    return [pytest.param(*row, marks=[pytest.mark.slow] if row[1] == "triton" else []) for row in rows]


@dataclass
class Call:
    """The inputs of one call, the last one the state."""

    name: str
    inputs: list[Tensor]
    starts: Tensor | None = None

    def __call__(self, implementation: str | None, part: slice = slice(None), state: Tensor | None = None):
        """(y, state) of a slice of time; from the call's own state where none is given."""
        *inputs, own = self.inputs
        cut = [x[:, part] if self.moves(i) else x for i, x in enumerate(inputs)]
        starts = None if self.starts is None else self.starts[:, part]
        state = own if state is None else state
        return getattr(ops, self.name)(*cut, state, starts=starts, implementation=implementation)

    def moves(self, i: int) -> bool:
        """Whether input i has a time axis."""
        return i not in FIXED.get(self.name, ())

    def gradients(self, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Gradients to every input and the initial state, of fixed random sums of y and the final state."""
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in outputs]
        return torch.autograd.grad(outputs, self.inputs, weights)


def make(
    name: str,
    *,
    B: int = 2,
    T: int = 17,
    H: int = 2,
    K: int = 16,
    V: int | None = None,
    dtype: torch.dtype = torch.float32,
    log_w: str = "usual",
    keys: float | None = None,
    starts: float = 0.0,
    seed: int = 0,
) -> Call:
    """Random inputs. `log_w`: "usual", "none" (0), or "strongest"; `keys`: the range of wkv4's keys."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    V = K if V is None else V
    if name == "wkv4":
        k = normal(B, T, K) if keys is None else (torch.rand(B, T, K, generator=generator) * 2 - 1) * keys
        decay = normal(K)
        state = torch.stack([normal(B, K), normal(B, K).exp(), normal(B, K)], dim=1)
        inputs = [decay, normal(K), k, normal(B, T, K), state]
        place, strongest = 0, 50.0
        usual = -(decay - 1).exp()
    else:
        r, k = normal(B, T, H, K), normal(B, T, H, K)
        decay = normal(H, K) if name == "wkv5" else normal(B, T, H, K)
        v, state = normal(B, T, H, V), normal(B, H, K, V)
        place = 1
        if name == "delta_rule":
            # No decay: the place is that of beta, and its strongest is 1.
            strongest, usual, place = -1.0, decay[..., 0].sigmoid(), 3
            inputs = [r, torch.nn.functional.normalize(k, dim=-1), v, usual, state]
        elif name == "gla":
            strongest, usual = 50.0, -decay.exp()
            inputs = [r, usual, k, v, state]
        elif name == "wkv7":
            strongest = STRONGEST_DECAY_OF_7
            usual = -strongest * decay.sigmoid()
            removal = torch.nn.functional.normalize(normal(B, T, H, K), dim=-1)
            inputs = [r, decay, k, v, -removal, removal * normal(B, T, H, K).sigmoid(), state]
        else:
            strongest = 50.0
            usual = -decay.exp()
            inputs = [r, decay, k, v, normal(H, K), state]
    if log_w == "usual":
        inputs[place] = usual
    elif log_w == "none":
        inputs[place] = torch.zeros_like(usual)
    elif log_w == "strongest":
        inputs[place] = torch.full_like(usual, -strongest)
    else:
        inputs[place] = -strongest * torch.rand(usual.shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(B, T, generator=generator) < starts if starts else None
    return Call(name, [x.to(dtype).requires_grad_() for x in inputs], mask)


def assert_close(got: Tensor, wanted: Tensor, bound: float, what: str) -> None:
    """Relative to the largest entry, and norm against norm."""
    difference = (got - wanted).double()
    size = wanted.double()
    if not size.any():
        assert not difference.any(), what
        return
    assert difference.abs().max() < bound * size.abs().max(), what
    assert difference.norm() < bound * size.norm(), what


def assert_same(call: Call, implementation: str) -> None:
    """An implementation equals the loop: y, state and every gradient."""
    wanted, got = call("reference"), call(implementation)
    for what, x, y in zip(("y", "state"), got, wanted, strict=True):
        assert x.dtype == y.dtype
        assert_close(x, y, 1e-5, what)
    for i, (x, y) in enumerate(zip(call.gradients(got), call.gradients(wanted), strict=True)):
        assert_close(x, y, 1e-4, f"gradient of input {i}")


@pytest.mark.parametrize(("name", "implementation"), DOUBLE)
@pytest.mark.parametrize("starts", [0.0, 0.3])
@pytest.mark.parametrize("T", [1, 5, 19])
def test_gradients_are_those_of_the_values(name: str, implementation: str, starts: float, T: int) -> None:
    call = make(name, B=2, T=T, H=1, K=2, V=3, dtype=torch.float64, starts=starts)
    if starts:
        assert call.starts is not None
        call.starts[0, T // 2] = True

    def function(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return Call(name, list(inputs), call.starts)(implementation)

    assert torch.autograd.gradcheck(function, call.inputs, fast_mode=T > 5)


@pytest.mark.parametrize(("name", "implementation"), long([x for x in ALL if x not in DOUBLE]))
@pytest.mark.parametrize("starts", [0.0, 0.3])
@pytest.mark.parametrize(("K", "V"), [(2, 3), (33, 16), (64, 64)])
def test_float32_gradients_are_those_of_float64(
    name: str, implementation: str, starts: float, K: int, V: int
) -> None:
    call = make(name, T=75, K=K, V=V, starts=starts)
    exact = Call(name, [x.detach().double().requires_grad_() for x in call.inputs], call.starts)
    got, wanted = call(implementation), exact("reference")
    for what, x, y in zip(("y", "state"), got, wanted, strict=True):
        assert_close(x, y, 5e-6, what)
    for i, (x, y) in enumerate(zip(call.gradients(got), exact.gradients(wanted), strict=True)):
        assert_close(x, y, 1e-5, f"gradient of input {i}")


@pytest.mark.parametrize(("name", "implementation"), short(COMPARED))
@pytest.mark.parametrize("T", [1, 2, 15, 16, 17, 31])
def test_equals_the_loop_at_short_lengths(name: str, implementation: str, T: int) -> None:
    assert_same(make(name, T=T), implementation)


@pytest.mark.parametrize(("name", "implementation"), long(COMPARED))
@pytest.mark.parametrize("T", [97, 331])
def test_equals_the_loop_at_any_length(name: str, implementation: str, T: int) -> None:
    assert_same(make(name, T=T), implementation)


@pytest.mark.parametrize(("name", "implementation"), long(COMPARED))
def test_equals_the_loop_over_4096_tokens(name: str, implementation: str) -> None:
    assert_same(make(name, B=1, H=1, T=4096), implementation)


@pytest.mark.parametrize(("name", "implementation"), short(COMPARED))
@pytest.mark.parametrize(("K", "V"), [(16, 32), (33, 16), (64, 64), (128, 128)])
def test_equals_the_loop_at_any_head_size(name: str, implementation: str, K: int, V: int) -> None:
    assert_same(make(name, K=K, V=V, T=37), implementation)


@pytest.mark.parametrize(("name", "implementation"), long(COMPARED))
@pytest.mark.parametrize("log_w", ["none", "strongest", "all"])
@pytest.mark.parametrize("starts", [0.0, 0.1])
def test_equals_the_loop_at_extreme_decays(name: str, implementation: str, log_w: str, starts: float) -> None:
    assert_same(make(name, T=131, log_w=log_w, starts=starts), implementation)


@pytest.mark.parametrize("implementation", [i for name, i in COMPARED if name == "wkv4"])
@pytest.mark.parametrize("log_w", ["none", "usual", "all"])
def test_wkv4_with_keys_of_60(implementation: str, log_w: str) -> None:
    assert_same(make("wkv4", T=1000, K=32, keys=60.0, log_w=log_w), implementation)


@pytest.mark.parametrize(("name", "implementation"), long([x for x in COMPARED if x[0] == "wkv7"]))
def test_wkv7_outside_the_models_range(name: str, implementation: str) -> None:
    for strongest in (-4.9, -50.0):
        call = make(name, T=61)
        with torch.no_grad():
            call.inputs[1].copy_(call.inputs[1] / STRONGEST_DECAY_OF_7 * -strongest)
        assert_same(call, implementation)


@pytest.mark.parametrize(("name", "implementation"), short(ALL))
@pytest.mark.parametrize("T", [16, 67])
def test_documents_of_a_row_do_not_see_each_other(name: str, implementation: str, T: int) -> None:
    call = make(name, B=1, T=T)
    call.starts = torch.zeros(1, T, dtype=torch.bool)
    edges = [0, 5, 6, 15, *([16, 40] if T > 40 else []), T]
    call.starts[0, edges[1:-1]] = True
    y, state = call(implementation)
    *inputs, own = call.inputs
    separate = Call(name, [*inputs, own])
    fresh = getattr(ops, name)(*(x[:, :1] * 0 if separate.moves(i) else x for i, x in enumerate(inputs)))[1]
    new = torch.zeros_like(fresh)
    if name == "wkv4":
        new[:, 2] = -1e30
    pieces = [
        separate("reference", slice(first, last), own if first == 0 else new)
        for first, last in pairwise(edges)
    ]
    together = torch.cat([piece[0] for piece in pieces], dim=1), pieces[-1][1]
    assert_close(y, together[0], 1e-5, "y")
    assert_close(state, together[1], 1e-5, "state")
    wanted = torch.autograd.grad(together[0].square().sum(), call.inputs)
    got = torch.autograd.grad(y.square().sum(), call.inputs)
    for i, (x, z) in enumerate(zip(got, wanted, strict=True)):
        assert_close(x, z, 1e-4, f"gradient of input {i}")


@pytest.mark.parametrize(("name", "implementation"), short(ALL))
def test_a_document_at_the_rows_start_ignores_the_state(name: str, implementation: str) -> None:
    call = make(name, T=20)
    call.starts = torch.zeros(2, 20, dtype=torch.bool)
    call.starts[:, 0] = True
    bad = torch.full_like(call.inputs[-1], torch.nan)
    y, state = call(implementation, state=bad)
    *inputs, _ = call.inputs
    wanted = getattr(ops, name)(*inputs, implementation=implementation)
    assert torch.equal(y, wanted[0])
    assert torch.equal(state, wanted[1])


@pytest.mark.parametrize(("name", "implementation"), long(COMPARED))
@pytest.mark.parametrize("T", [16, 67])
@pytest.mark.parametrize("starts", [0.02, 0.2, 1.0])
def test_equals_the_loop_with_documents(name: str, implementation: str, T: int, starts: float) -> None:
    assert_same(make(name, B=3, T=T, starts=starts), implementation)


def spans(cuts: list[int], tokens: int) -> Iterator[slice]:
    edges = [0, *sorted(cuts), tokens]
    return (slice(first, last) for first, last in pairwise(edges))


@pytest.mark.parametrize(("name", "implementation"), [*short(ALL), *((name, None) for name in OPERATORS)])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_splits_carried_by_the_state_equal_the_whole(
    name: str, implementation: str | None, data: st.DataObject
) -> None:
    T = data.draw(st.integers(2, 60), label="tokens")
    cuts = data.draw(st.lists(st.integers(1, T - 1), min_size=1, max_size=4, unique=True), label="cuts")
    call = make(name, B=1, T=T, starts=data.draw(st.sampled_from([0.0, 0.1]), label="starts"))
    whole = call("reference")
    state, pieces = call.inputs[-1], []
    for part in spans(cuts, T):
        y, state = call(implementation, part, state)
        pieces.append(y)
    split = torch.cat(pieces, dim=1), state
    for what, x, y in zip(("y", "state"), split, whole, strict=True):
        assert_close(x, y, 1e-5, what)
    for i, (x, y) in enumerate(zip(call.gradients(split), call.gradients(whole), strict=True)):
        assert_close(x, y, 1e-4, f"gradient of input {i}")


@pytest.mark.parametrize(("name", "implementation"), short(ALL))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_computed_in_float32(
    name: str, implementation: str, dtype: torch.dtype
) -> None:
    call = make(name, dtype=dtype)
    exact = Call(name, [x.detach().float().requires_grad_() for x in call.inputs])
    y, state = call(implementation)
    wanted = exact(implementation)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    if implementation == "triton":
        # Triton's interpreter cuts digits off where a GPU rounds.
        assert ((y - wanted[0]).abs() <= 2**-7 * wanted[0].abs()).all()
    else:
        assert torch.equal(y, wanted[0].to(dtype))
    assert torch.equal(state, wanted[1])


@pytest.mark.parametrize(("name", "implementation"), short(ALL))
def test_autocast_does_not_reach_inside(name: str, implementation: str) -> None:
    call = make(name, T=40)
    wanted = call(implementation)
    gradients = call.gradients(wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = call(implementation)
        # Torch advises against a backward pass under autocast; what is not plain torch inside bears it.
        inside = call.gradients(call(implementation)) if implementation != "reference" else gradients
    for these in (call.gradients(got), inside):
        for x, y in zip(these, gradients, strict=True):
            assert_close(x, y, 1e-6, "gradient")
    for x, y in zip(got, wanted, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(("name", "implementation"), short(ALL))
def test_no_state_is_a_fresh_one_and_inputs_stay_as_they_were(name: str, implementation: str) -> None:
    call = make(name)
    *inputs, state = call.inputs
    fresh = torch.zeros_like(state)
    if name == "wkv4":
        fresh[:, 2] = -1e30
    copies = [x.clone() for x in (*inputs, fresh)]
    function = getattr(ops, name)
    for x, y in zip(
        function(*inputs, implementation=implementation),
        function(*inputs, fresh, implementation=implementation),
        strict=True,
    ):
        assert torch.equal(x, y)
    for x, y in zip((*inputs, fresh), copies, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(("name", "implementation"), short(ALL))
@pytest.mark.parametrize("T", [32, 33])
def test_inputs_of_any_layout(name: str, implementation: str, T: int) -> None:
    call = make(name, T=T)
    wanted = call("reference")
    strided = [x.detach().swapaxes(0, -1).contiguous().swapaxes(0, -1).requires_grad_() for x in call.inputs]
    turned = Call(name, strided)
    got = turned(implementation)
    for what, x, y in zip(("y", "state"), got, wanted, strict=True):
        assert_close(x, y, 1e-5, what)
    ones = torch.autograd.grad(got[0].sum(), strided)
    for i, (x, y) in enumerate(zip(ones, torch.autograd.grad(wanted[0].sum(), call.inputs), strict=True)):
        assert_close(x, y, 1e-4, f"gradient of input {i}")


def test_the_choice_is_told_and_can_be_forced() -> None:
    for name in OPERATORS:
        assert ops.chosen(name, tokens=1) == "native"
        assert ops.chosen(name, tokens=512) == "native"
        assert ops.chosen(name, tokens=512, dtype=torch.bfloat16) == "native"
        assert ops.chosen(name, tokens=512, dtype=torch.float64) == "chunked"
        assert ops.chosen(name, tokens=1, dtype=torch.float64) == "reference"
        assert ops.chosen(name, tokens=512, implementation="reference") == "reference"
    with pytest.raises(ConfigError, match="'fast' is unknown; there are native, triton, chunked, reference"):
        ops.chosen("wkv7", tokens=1, implementation="fast")
    with pytest.raises(ConfigError, match="no recurrence 'wkv8'"):
        ops.chosen("wkv8", tokens=1)


@pytest.mark.parametrize("name", OPERATORS)
def test_what_does_not_fit_is_refused(name: str) -> None:
    function = getattr(ops, name)
    *inputs, state = [x.detach() for x in make(name, T=4).inputs]
    with pytest.raises(StateError, match="the state has shape"):
        function(*inputs, state[:1])
    with pytest.raises(StateError, match=r"the state is torch\.int64"):
        function(*inputs, state.long())
    with pytest.raises(ConfigError, match="starts is"):
        function(*inputs, starts=torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="starts is"):
        function(*inputs, starts=torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(ConfigError, match="at least one token"):
        function(*(x if i in FIXED.get(name, ()) else x[:, :0] for i, x in enumerate(inputs)))
    with pytest.raises(ConfigError, match="is unknown"):
        function(*inputs, implementation="other")
    for i, x in enumerate(inputs):
        with pytest.raises(ConfigError, match=r"axes|shape"):
            function(*inputs[:i], x[..., None], *inputs[i + 1 :])
        if x.shape[-1] == 16:
            # Any number of value channels is right but where a state says otherwise.
            with pytest.raises((ConfigError, StateError), match="shape"):
                function(*inputs[:i], torch.cat([x, x], -1), *inputs[i + 1 :], state)


# The compiler looks at .grad of every tensor, and hides what torch says to that only from the default filter.
@pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", OPERATORS)
def test_inside_a_compiled_function(name: str) -> None:
    call = make(name, T=33)

    @torch.compile(backend="eager")
    def compiled(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        y, state = getattr(ops, name)(*inputs)
        return y * 2, state * 2

    got, plain = compiled(*call.inputs), call(None)
    for x, y in zip(got, plain, strict=True):
        assert torch.equal(x, y * 2)
    for x, y in zip(call.gradients(got), call.gradients(plain), strict=True):
        assert torch.equal(x, y * 2)


@pytest.mark.parametrize(("name", "implementation"), short(COMPARED))
def test_trains_after_it_first_ran_in_inference_mode(name: str, implementation: str) -> None:
    # A length that no other test uses: what a form keeps for a length is then made in inference mode.
    call = make(name, T=13)
    with torch.inference_mode():
        call(implementation)
    assert all(torch.isfinite(x).all() for x in call.gradients(call(implementation)))
