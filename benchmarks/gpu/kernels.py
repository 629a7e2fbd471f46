"""The recurrences forward and backward, against fla's and against the bytes that they must move."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.gpu import peers
from benchmarks.gpu.floors import RECURRENCES
from benchmarks.gpu.process import reason_of
from benchmarks.gpu.recurrences import call, implementation_of, inputs_of, leaves
from benchmarks.gpu.setting import Fact, Setting
from benchmarks.gpu.timing import apart, free, generator, timed
from benchmarks.report import Figure, interleaved

__all__ = ["compile_all", "measure"]

Side = Callable[..., Tensor]

OURS = "rookery"

# Tokens of a rehearsal: kernels are compiled for numbers that 16 divides, whichever these are.
_REHEARSED = (8, 256)


def measure(setting: Setting, *, recurrence: str) -> Iterator[Figure | Fact]:
    """Milliseconds of both sides, in turn; how close that is to the floor; how far apart the outputs are."""
    B, T, H, K = setting.shapes.kernel
    if setting.device != "cpu":
        peers.tune_quickly(rehearsal=False)
    inputs = leaves(_inputs(setting, recurrence, B, T))
    implementation = implementation_of(recurrence, setting.device, torch.bfloat16, T)
    yield Fact(name=f"implementation of {recurrence}", value=implementation)
    sides, missing = _sides(setting, recurrence, implementation)
    name = f"{recurrence} forward + backward"
    yield from (Figure(f"{name}: {peer}", float("nan"), "ms", failed=why) for peer, why in missing.items())
    dy = torch.randn(inputs[3].shape, generator=generator(setting, 1), device=setting.device).bfloat16()
    with torch.no_grad():
        wanted = sides[OURS](*inputs)
    turns = {}
    for side, function in sides.items():
        try:
            found = function(*inputs)
            torch.autograd.grad(found, inputs, dy)
        except Exception as error:  # a peer that does not compile or run here
            if side == OURS:
                raise
            yield Figure(f"{name}: {side}", float("nan"), "ms", failed=reason_of(error))
            continue
        turns[side] = timed(setting.device, _turn(function, inputs, dy))
        if side != OURS:
            yield Figure(f"{recurrence}: {side} against {OURS}", apart(found, wanted), "of the norm")
        del found
    free(setting.device)
    shapes = setting.shapes
    measured = interleaved(turns, rounds=shapes.rounds, warm_up=shapes.warm_up)
    seconds = {side: statistics.median(each) for side, each in measured.items()}
    for side, each in seconds.items():
        yield Figure(f"{name}: {side}", each * 1e3, "ms")
    rivals = [each for side, each in seconds.items() if side != OURS]
    against = f"{name}: fla's time / rookery's"
    if rivals:
        yield Figure(against, min(rivals) / seconds[OURS], "ratio")
    else:
        yield Figure(against, float("nan"), "ratio", failed="nothing of fla ran; see there")
    forward = interleaved(
        {OURS: timed(setting.device, lambda: sides[OURS](*inputs))},
        rounds=shapes.rounds,
        warm_up=shapes.warm_up,
    )
    yield Figure(f"{recurrence} forward: rookery", statistics.median(forward[OURS]) * 1e3, "ms")
    floor = RECURRENCES[recurrence].both(B, T, H, K, itemsize=2).bytes / setting.measured_limits().bandwidth
    yield Figure(f"{name}: floor by bytes", floor * 1e3, "ms")
    yield Figure(f"{name}: floor by bytes / time", floor / seconds[OURS], "ratio")


def compile_all(setting: Setting, *, recurrence: str) -> Iterator[Figure | Fact]:
    """Run each side once on a few tokens, so that the measurement finds its kernels compiled."""
    os.nice(10)  # what is checked meanwhile comes first
    peers.tune_quickly(rehearsal=True)
    B, T = _REHEARSED
    implementation = implementation_of(recurrence, setting.device, torch.bfloat16, setting.shapes.kernel[1])
    sides, _ = _sides(setting, recurrence, implementation)
    inputs = leaves(_inputs(setting, recurrence, B, T))
    with torch.no_grad():
        sides[OURS](*inputs)
    for side, function in sides.items():
        try:
            y = function(*inputs)
            torch.autograd.grad(y, inputs, torch.ones_like(y))
        except Exception as error:
            # The measurement meets it again, and says so.
            yield Fact(name=f"did not compile: {recurrence}, {side}", value=reason_of(error))


def _inputs(setting: Setting, recurrence: str, B: int, T: int) -> list[Tensor]:
    _, _, H, K = setting.shapes.kernel
    return inputs_of(recurrence, B, T, H, K, dtype=torch.bfloat16, generator=generator(setting))


def _sides(setting: Setting, recurrence: str, implementation: str) -> tuple[dict[str, Side], dict[str, str]]:
    """Ours and fla's by name, and why some of them are not there."""

    def ours(*inputs: Tensor) -> Tensor:
        return call(recurrence, list(inputs), implementation)[0]

    sides: dict[str, Side] = {OURS: ours}
    missing: dict[str, str] = {}
    for peer in peers.NAMES[recurrence]:
        if setting.device == "cpu":
            missing[peer] = "fla's kernels need a GPU"
            continue
        try:
            sides[peer] = peers.load(peer)
        except ImportError as error:
            missing[peer] = f"fla-core is not installed, or lacks something: {reason_of(error)}"
    return sides, missing


def _turn(side: Side, inputs: list[Tensor], dy: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(side(*inputs), inputs, dy)
