"""What `hazards` finds, on kernels that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rookery.ops.triton import INSTALLED, interpreting

if not (INSTALLED and interpreting()):
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl

from tests.ops.hazards import watching


@triton.jit
def halves(x, y, n, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    """y = x reversed within blocks, by way of y itself."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    back = tl.program_id(0) * BLOCK + BLOCK - 1 - tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n), mask=at < n)
    if BARRIER:
        tl.debug_barrier()
    found = tl.load(y + back, mask=back < n)
    if BARRIER:
        tl.debug_barrier()
    tl.store(y + at, found, mask=at < n)


@triton.jit
def in_place(x, n, BLOCK: tl.constexpr, AHEAD: tl.constexpr, MASK: tl.constexpr):
    """Double x; or write AHEAD of what was read."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n if MASK else at == at
    found = tl.load(x + at, mask=inside)
    tl.store(x + at + AHEAD, 2 * found, mask=inside & (at + AHEAD < n) if MASK else inside)


@triton.jit
def to_one_place(x, y, BLOCK: tl.constexpr, SAME: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(y + lane * 0, tl.load(x + lane * 0) if SAME else tl.load(x + lane))


@triton.jit
def last_lane_again(x, lanes, BLOCK: tl.constexpr):
    """Double x, by lanes of which those behind the last do what the last one does."""
    lane = tl.minimum(tl.arange(0, BLOCK), lanes - 1)
    tl.store(x + lane, 2 * tl.load(x + lane))


@triton.jit
def undefined(x, y, n, BLOCK: tl.constexpr, OTHER: tl.constexpr):
    """The sum of x."""
    at = tl.arange(0, BLOCK)
    found = tl.load(x + at, mask=at < n, other=0.0) if OTHER else tl.load(x + at, mask=at < n)
    tl.store(y, tl.sum(found.to(tl.float32), axis=0))


def numbers(n: int = 16) -> torch.Tensor:
    return torch.arange(float(n))


CASES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "a barrier between": (lambda: halves[(2,)](numbers(), numbers(), 16, BLOCK=8, BARRIER=True), []),
    "no barrier between": (
        lambda: halves[(2,)](numbers(), numbers(), 16, BLOCK=8, BARRIER=False),
        [
            "reads what it wrote, without a barrier",
            "writes twice, without a barrier",
            "writes what another lane reads, without a barrier",
        ],
    ),
    "in place": (lambda: in_place[(2,)](numbers(), 16, BLOCK=8, AHEAD=0, MASK=True), []),
    "in place, ahead": (
        lambda: in_place[(1,)](numbers(), 16, BLOCK=16, AHEAD=1, MASK=True),
        ["writes what another lane reads, without a barrier"],
    ),
    "in place, ahead of a program": (
        lambda: in_place[(2,)](numbers(), 16, BLOCK=8, AHEAD=8, MASK=True),
        ["reads what another program writes"],
    ),
    "in place, behind a program": (
        lambda: in_place[(2,)](numbers()[8:], 8, BLOCK=8, AHEAD=-8, MASK=True),
        ["writes outside of its tensors"],
    ),
    "programs that meet": (
        lambda: to_one_place[(2,)](numbers(), numbers(), BLOCK=1, SAME=False),
        ["writes what another program writes"],
    ),
    "lanes that meet": (
        lambda: to_one_place[(1,)](numbers(), numbers(), BLOCK=8, SAME=False),
        ["writes different numbers to one location"],
    ),
    "lanes that agree": (lambda: to_one_place[(1,)](numbers(), numbers(), BLOCK=8, SAME=True), []),
    "lanes that agree, in place": (
        lambda: last_lane_again[(1,)](numbers(), 5, BLOCK=8),
        ["writes what another lane reads, without a barrier"],
    ),
    "behind the end": (
        lambda: in_place[(1,)](numbers()[:10], 10, BLOCK=16, AHEAD=0, MASK=False),
        ["reads outside of its tensors", "writes outside of its tensors"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_finds_what_an_interpreter_does_not_show(case):
    run, wanted = CASES[case]
    with watching() as found:
        run()
    assert [line.partition(": ")[2] for line in found] == wanted


def test_names_the_kernel():
    with watching() as found:
        CASES["lanes that meet"][0]()
    assert found == ["to_one_place: writes different numbers to one location"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_undefined_shows(dtype):
    x, y = numbers().to(dtype), torch.zeros(1)
    with watching() as found:
        undefined[(1,)](x, y, 5, BLOCK=8, OTHER=False)
        # Triton's interpreter makes infinity of a bfloat16 that is no number.
        assert not y.isfinite()
        undefined[(1,)](x, y, 5, BLOCK=8, OTHER=True)
        assert y == 10
        assert torch.empty(3).isnan().all()
    assert not found


def test_what_is_watched_runs_on_unwatched():
    x = numbers()
    with pytest.raises(KeyError), watching():
        raise KeyError
    in_place[(2,)](x, 16, BLOCK=8, AHEAD=0, MASK=True)
    assert x.equal(2 * numbers())
