"""Seconds of what a device does, by its own events, and what every group needs besides."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.setting import Setting

__all__ = ["apart", "free", "generator", "seconds", "timed", "uninitialized_is_nan"]


def seconds(device: str, side: Callable[[], object]) -> float:
    """How long a side takes, from the device's first work to its last; on a CPU by the clock."""
    if device == "cpu":
        start = time.perf_counter()
        side()
        return time.perf_counter() - start
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begun.record()
    side()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended) / 1e3


def timed(device: str, side: Callable[[], object]) -> Callable[[], float]:
    """A side as `benchmarks.report.interleaved` takes it."""
    return lambda: seconds(device, side)


def generator(setting: Setting, salt: int = 0) -> torch.Generator:
    """Random numbers of the run's seed, on its device."""
    return torch.Generator(setting.device).manual_seed(setting.seed + salt)


def apart(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference over the norm of what is wanted, in float64; nan where one is not finite."""
    wanted = wanted.detach().double()
    return float((found.detach().double() - wanted).norm() / wanted.norm())


def free(device: str) -> None:
    """Give back what is not in use, so that the next side has all memory."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


@contextmanager
def uninitialized_is_nan() -> Iterator[None]:
    """What torch allocates without a value is nan, so that an element that nobody writes shows."""
    options: Any = torch.utils.deterministic
    filled = options.fill_uninitialized_memory
    with warnings.catch_warnings():
        # Torch fills memory only where it is asked for deterministic algorithms, and says where it has none.
        warnings.filterwarnings("ignore", message=".*deterministic")
        torch.use_deterministic_algorithms(True, warn_only=True)
        options.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)
            options.fill_uninitialized_memory = filled
