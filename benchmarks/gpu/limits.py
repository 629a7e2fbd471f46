"""What the machine does at most: bytes a second, and operations of a matrix product in bfloat16."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Iterator, Mapping

import torch

from benchmarks.gpu.parts import COPY, MATRIX, READ
from benchmarks.gpu.setting import Fact, Setting
from benchmarks.gpu.timing import free, generator, timed
from benchmarks.report import Figure, interleaved

__all__ = ["measure"]


def measure(setting: Setting) -> Iterator[Figure | Fact]:
    """The limits, and what the device is."""
    yield from _facts(setting)
    yield from _bandwidth(setting)
    free(setting.device)
    yield _matrix_rate(setting)


def _bandwidth(setting: Setting) -> Iterator[Figure]:
    count = setting.shapes.probe_bytes
    source = torch.randn(count // 4, generator=generator(setting), device=setting.device)
    target = torch.empty_like(source)
    measured = _medians(setting, {COPY: lambda: target.copy_(source), READ: lambda: source.sum()})
    yield Figure(COPY, 2 * count / measured[COPY] / 1e9, "GB/s")
    yield Figure(READ, count / measured[READ] / 1e9, "GB/s")


def _matrix_rate(setting: Setting) -> Figure:
    n = setting.shapes.product
    # Random numbers: a product of zeros takes less power, and so less time.
    a, b = (
        torch.randn((n, n), generator=generator(setting, salt), device=setting.device).bfloat16()
        for salt in (1, 2)
    )
    out = torch.empty_like(a)
    measured = _medians(setting, {MATRIX: lambda: torch.mm(a, b, out=out)})
    return Figure(MATRIX, 2 * n**3 / measured[MATRIX] / 1e12, "TFLOP/s")


def _medians(setting: Setting, sides: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    turns = {name: timed(setting.device, side) for name, side in sides.items()}
    shapes = setting.shapes
    measured = interleaved(turns, rounds=2 * shapes.rounds, warm_up=2 * shapes.warm_up)
    return {name: statistics.median(each) for name, each in measured.items()}


def _facts(setting: Setting) -> Iterator[Fact]:
    yield Fact(name="torch", value=torch.__version__)
    if setting.device == "cpu":
        yield Fact(name="device", value=f"CPU, {platform.machine()}")
        return
    properties = torch.cuda.get_device_properties(0)
    yield Fact(name="device", value=properties.name)
    yield Fact(name="device memory, GiB", value=round(properties.total_memory / 2**30, 1))
    yield Fact(name="multiprocessors", value=properties.multi_processor_count)
    yield Fact(name="CUDA", value=torch.version.cuda)
