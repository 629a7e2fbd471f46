"""What every part of the benchmark is given: how large, on what, until when, against which limits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rookery.config import ModelConfig, preset, sized

__all__ = ["FULL", "H100", "TINY", "Fact", "Limits", "Rates", "Setting", "Shapes", "decoding_of", "rates_of"]

Compile = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device does in a second by its data sheet: bytes, and dense operations of matrix products."""

    bandwidth: float
    bf16: float
    tf32: float


H100 = Rates(bandwidth=3.35e12, bf16=989e12, tf32=495e12)
SHEETS = {"H100": H100, "H200": Rates(bandwidth=4.8e12, bf16=989e12, tf32=495e12)}


def decoding_of(size: str, streams: int) -> str:
    """What figures of so many streams of a model begin with."""
    return f"decode {size}, {streams} stream{'s' if streams > 1 else ''}"


def rates_of(device: str) -> Rates | None:
    """The data sheet's rates of a device, by its name as CUDA has it; None for one that is not listed."""
    return next((rates for name, rates in SHEETS.items() if name in device), None)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What this machine did in a second, measured in the same run: bytes, and operations in bfloat16."""

    bandwidth: float
    matrix: float


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What is no figure, and belongs to how figures were measured."""

    name: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sizes of everything."""

    probe_bytes: int
    """Of the memory that is copied and read."""

    product: int
    """Rows and columns of the matrices of the matrix rate."""

    kernel: tuple[int, int, int, int]
    """B, T, H, K of the recurrences that are timed."""

    checked: tuple[int, int, int]
    """B, T, H of those that are checked; T is no multiple of a chunk."""

    head_sizes: tuple[int, ...]
    """K of those that are checked."""

    models: Mapping[str, ModelConfig]
    """What is trained; the last one decodes and prefills as well."""

    contexts: tuple[int, int]
    """T of training: of the bounds on MFU, and a long one."""

    batch_tokens: int
    """B T of the largest micro-batch that is tried."""

    streams: int
    """That decode at once."""

    prompt: int
    """Tokens of prefill."""

    steps: int
    """Tokens of one timed turn of decoding."""

    rounds: int
    """Timed turns of each side."""

    warm_up: int
    """Turns before them."""


FULL = Shapes(
    probe_bytes=4 << 30,
    product=8192,
    kernel=(8, 4096, 64, 64),
    checked=(2, 1021, 2),
    head_sizes=(64, 128),
    models={"0.4B": preset("7", "0.4B"), "1.5B": preset("7", "1.5B")},
    contexts=(4096, 16384),
    batch_tokens=1 << 17,
    streams=320,
    prompt=8192,
    steps=32,
    rounds=10,
    warm_up=2,
)
TINY = Shapes(
    probe_bytes=1 << 20,
    product=64,
    kernel=(1, 19, 2, 16),
    checked=(1, 19, 2),
    head_sizes=(16,),
    models={"tiny": sized("7", vocab_size=48, width=32, num_layers=2, head_size=16)},
    contexts=(12, 24),
    batch_tokens=24,
    streams=3,
    prompt=20,
    steps=2,
    rounds=1,
    warm_up=0,
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One run."""

    device: str
    """Of torch: "cuda", or "cpu" where only the code is tried."""

    tiny: bool
    """Whether sizes are those that a CPU does in seconds; then nothing is held against a bound."""

    seed: int
    """Of all random numbers."""

    compile: Compile = "auto"
    """Whether training is compiled: both, and the faster counts; or one of them."""

    deadline: float = float("inf")
    """When the part must have ended, by `time.monotonic`."""

    limits: Limits | None = None
    """None where they could not be measured."""

    @property
    def shapes(self) -> Shapes:
        """The sizes."""
        return TINY if self.tiny else FULL

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return self.deadline - time.monotonic()

    def measured_limits(self) -> Limits:
        """The limits.

        Raises:
            RuntimeError: they are not known.
        """
        if self.limits is None:
            raise RuntimeError("the bandwidth and the matrix rate of this machine could not be measured")
        return self.limits

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` takes them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Setting:
        """The inverse of ``to_dict``."""
        limits = values["limits"]
        return cls(**{**values, "limits": None if limits is None else Limits(**limits)})
