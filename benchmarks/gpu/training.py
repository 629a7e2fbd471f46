"""A step of training in bfloat16, as `rookery train --bf16` does it: RWKV-7 and a GPT of the same shape.

Both sides have the same loss (ours with the recipe's brake on large logits), optimizer, clipping, and the
largest micro-batch that fits, found by halving and then to a quarter; where not even one row fits,
activations are computed again in the backward pass. Both run as they are and compiled block by block, and the
faster way of each counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.gpt import GPT
from benchmarks.gpu import models
from benchmarks.gpu.floors import multiplied, step_operations
from benchmarks.gpu.process import reason_of
from benchmarks.gpu.setting import Fact, Setting, rates_of
from benchmarks.gpu.timing import free, generator, seconds
from benchmarks.report import Figure
from rookery.config import ModelConfig
from rookery.models import RWKV
from rookery.ops.fused import linear_cross_entropy
from rookery.train.loop import compile_blocks
from rookery.train.loss import loss_of_rows
from rookery.train.optimizer import clip_gradients

__all__ = ["Speed", "largest", "measure", "mfu"]

# Compiling takes about as long as this; less is better left to the figures that are there.
_COMPILING = 25.0

_WAYS = {False: "as it is", True: "compiled"}


@dataclass(frozen=True)
class Speed:
    """What a step of one side came to."""

    batch: int
    context: int
    seconds: float
    compiled: bool
    recomputed: bool
    """Whether the backward pass computes activations again."""

    @property
    def rate(self) -> float:
        """Tokens in a second."""
        return self.batch * self.context / self.seconds

    @property
    def way(self) -> str:
        """How it was run, for people."""
        again = ", activations computed again" if self.recomputed else ""
        return f"micro-batch {self.batch}, {_WAYS[self.compiled]}{again}"


def measure(setting: Setting, *, size: str, context: int) -> Iterator[Figure | Fact]:
    """Tokens a second of both sides, and the parts of the limits that ours reaches."""
    config = setting.shapes.models[size]
    name = f"training {size}, T {context}"
    best: dict[str, Speed] = {}
    failures: dict[str, str] = {}
    for compiled in {"auto": (False, True), "on": (True,), "off": (False,)}[setting.compile]:
        if compiled and best and setting.seconds_left < _COMPILING:
            yield Fact(name=f"{name}: not compiled", value="too little time was left")
            break
        tried: dict[str, Speed] = {}
        for side, make in _SIDES.items():
            try:
                tried[side] = _speed(setting, make, config, context, compiled=compiled, before=best.get(side))
            except Exception as error:
                failures[side] = reason_of(error)
                yield Fact(name=f"{name}: {side}, {_WAYS[compiled]}, failed", value=failures[side])
                continue
            finally:
                free(setting.device)
            if side not in best or tried[side].rate > best[side].rate:
                best[side] = tried[side]
            yield from _rates(name, side, best[side])
            if side == "RWKV-7":
                yield from _shares(setting, name, config, best[side])
        # Ways that only one side has had are not compared.
        if tried.keys() == _SIDES.keys():
            yield Figure(f"{name}: RWKV-7 / GPT", best["RWKV-7"].rate / best["GPT"].rate, "ratio")
    for side in failures.keys() - best.keys():
        raise RuntimeError(f"{side}: {failures[side]}")


def mfu(parameters: int, tokens_per_second: float, operations_per_second: float) -> float:
    """Model FLOP utilization: 6 N for each token over what the device can do."""
    return step_operations(parameters, 1) * tokens_per_second / operations_per_second


def largest(rows: int, attempt: Callable[[int], None]) -> int:
    """The largest batch that fits, of at most `rows`; 0 where not even one row does.

    Of `rows`, half of them, and so on; and of batches larger than the one that fits by a half, a quarter and
    three quarters.
    """
    found = rows
    while found > 0 and not _fits(found, attempt):
        found //= 2
    if found < rows:
        for step in (found // 2, found // 4):
            if step and _fits(found + step, attempt):
                found += step
    return found


def _fits(rows: int, attempt: Callable[[int], None]) -> bool:
    try:
        attempt(rows)
    except RuntimeError as error:
        # Libraries that allocate for themselves say so in words alone.
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "out of memory" not in str(error):
            raise
        return False
    return True


def _rates(name: str, side: str, speed: Speed) -> Iterator[Figure | Fact]:
    yield Figure(f"{name}: {side}", speed.rate, "tok/s")
    yield Fact(name=f"{name}: {side}", value=speed.way)


def _shares(setting: Setting, name: str, config: ModelConfig, speed: Speed) -> Iterator[Figure]:
    parameters = multiplied(config)
    device = setting.device if setting.device == "cpu" else torch.cuda.get_device_name()
    sheet, by_sheet = rates_of(device), f"{name}: MFU by 6 N, of the data sheet's rate"
    if sheet is None:
        yield Figure(by_sheet, float("nan"), "ratio", failed=f"the data sheet of {device} is not known")
    else:
        yield Figure(by_sheet, mfu(parameters, speed.rate, sheet.bf16), "ratio")
    if setting.limits is not None:
        value = mfu(parameters, speed.rate, setting.limits.matrix)
        yield Figure(f"{name}: MFU by 6 N, of the measured matrix rate", value, "ratio")


def _speed(
    setting: Setting, make: Make, config: ModelConfig, context: int, *, compiled: bool, before: Speed | None
) -> Speed:
    """The median of a few steps with the largest batch, sought from the one on that fitted before."""
    model = make(setting, config)
    optimizer = models.optimizer_of(model)
    if compiled:
        # On a CPU the tracing alone is tried.
        compile_blocks(model, backend="eager" if setting.tiny else "inductor")

    def attempt(rows: int) -> None:
        try:
            _step(setting, model, optimizer, config, rows, context)()
        finally:
            optimizer.zero_grad()
            free(setting.device)

    rows, recomputed = 0, False
    most = max(1, setting.shapes.batch_tokens // context) if before is None else before.batch
    for recomputed in (False, True) if before is None else (before.recomputed,):
        model.recompute = recomputed
        rows = largest(most, attempt)
        if rows:
            break
    if not rows:
        raise RuntimeError(f"one row of {context} tokens does not fit in memory")
    step = _step(setting, model, optimizer, config, rows, context)
    shapes = setting.shapes
    for _ in range(shapes.warm_up):
        step()
    median = statistics.median(seconds(setting.device, step) for _ in range(max(1, shapes.rounds // 2)))
    return Speed(rows, context, median, compiled=compiled, recomputed=recomputed)


def _loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats a token, from logits that exist for one chunk of tokens at a time on both sides."""
    count = targets.numel()
    if isinstance(model, RWKV):
        return loss_of_rows(model, inputs, targets, None, predicted=count, positions=count)
    assert isinstance(model, GPT)
    return linear_cross_entropy(model.hidden(inputs), model.head.weight, targets) / count


def _step(
    setting: Setting,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: ModelConfig,
    rows: int,
    context: int,
) -> Callable[[], None]:
    tokens = torch.randint(
        config.vocab_size, (rows, context + 1), generator=generator(setting, rows), device=setting.device
    )
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def step() -> None:
        with torch.autocast(setting.device, dtype=torch.bfloat16):
            loss = _loss(model, inputs, targets)
        loss.backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


Make = Callable[[Setting, ModelConfig], RWKV | GPT]

# Ours last: what the other side gave is kept if it fails.
_SIDES: dict[str, Make] = {
    "GPT": lambda setting, config: models.gpt(config, setting.device),
    "RWKV-7": lambda setting, config: models.rwkv(config, setting.device, generator(setting)),
}
