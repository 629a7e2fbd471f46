"""The rounding of tensor cores, emulated: the bounds on the recurrences' errors hold with it."""

from __future__ import annotations

import pytest
import torch

from rookery.ops.triton import INSTALLED, interpreting

if not (INSTALLED and interpreting()):
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl

from benchmarks.gpu.correctness import FORWARD, GRADIENT
from benchmarks.gpu.rounding import measure, tensor_cores
from rookery.ops.tiles import product

# T is no multiple of a chunk.
SHAPE = (1, 67, 1, 32)


@triton.jit
def _square(x, y, PRECISION: tl.constexpr):
    """Of the diagonal matrix of 16 numbers."""
    at = tl.arange(0, 16)
    diagonal = tl.where(at[:, None] == at[None, :], tl.load(x + at)[:, None], 0.0)
    tl.store(y + at, tl.sum(product(diagonal, diagonal, PRECISION), axis=1))


@triton.jit
def _copy(x, y):
    at = tl.arange(0, 16)
    tl.store(y + at, tl.load(x + at).to(y.dtype.element_ty))


@pytest.mark.parametrize(("precision", "digits"), [("bf16", 7), ("tf32", 10), ("tf32x3", 20)])
def test_products_have_the_digits_that_tensor_cores_read(precision: str, digits: int):
    x = torch.tensor([1 + 2.0**-n for n in range(5, 21)])
    found = torch.empty(16)
    with tensor_cores():
        _square[(1,)](x, found, PRECISION=precision)
    n = torch.arange(5, 21)
    # Three products leave out that of what both sides lack.
    bound = 2.0**-21 if precision == "tf32x3" else 0.0
    assert ((found - x.double() ** 2).abs()[n <= digits] <= bound).all()
    assert (found[n > digits + 1] == 1).all() or precision == "tf32x3"
    _square[(1,)](x, found, PRECISION="tf32")
    assert (found > 1).all(), "behind it the interpreter multiplies as before"


def test_bfloat16_is_rounded_to_the_nearest():
    x, found = 1 + torch.linspace(0, 1, 16), torch.empty(16, dtype=torch.bfloat16)
    with tensor_cores():
        _copy[(1,)](x, found)
    assert found.equal(x.bfloat16())


@pytest.mark.parametrize("recurrence", ["wkv7", "wkv6"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 6e-3), (torch.float32, 1e-5)])
def test_the_bounds_on_errors_hold(recurrence: str, dtype: torch.dtype, bound: float):
    found = measure(recurrence, dtype, None, SHAPE)
    assert found[FORWARD] < bound
    assert found[GRADIENT] < bound


def test_products_of_fewer_digits_show():
    """So that the bounds are no matter of course."""
    assert measure("wkv7", torch.float32, "tf32", SHAPE)[FORWARD] > 1e-4
    exact, rounded = (measure("wkv7", torch.bfloat16, p, SHAPE)[GRADIENT] for p in ("tf32x3", "bf16"))
    assert rounded > 1.5 * exact
