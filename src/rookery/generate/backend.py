"""What runs a model, and the table of what there is."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rookery.checkpoints import Checkpoint
from rookery.config import ModelConfig
from rookery.errors import ConfigError, MissingExtraError, require
from rookery.state import State

__all__ = ["BACKENDS", "DTYPES", "Backend", "BackendRow", "choose", "open_backend"]

DTYPES = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "q8": "q8",
    "q4": "q4",
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
}
"""The names of number types for weights, and what each stands for; a backend has some of them."""


class Backend(Protocol):
    """One loaded model, on one device.

    A state is made of the backend's own arrays, and no method writes into one that it was given.
    """

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        ...

    def initial_state(self, batch: int = 1) -> State[Any]:
        """The state of ``batch`` streams before their first token."""
        ...

    def forward(
        self, tokens: np.ndarray, state: State[Any], *, last_only: bool = False
    ) -> tuple[np.ndarray, State[Any]]:
        """Read tokens.

        Args:
            tokens: [B, T] integers, each in the vocabulary; T is at least 1.
            state: of B streams.
            last_only: give the logits after the last token alone.

        Returns:
            Logits [B, T, N] or [B, 1, N], float32, and the state after the last token.
        """
        ...

    def to_numpy(self, state: State[Any]) -> State[np.ndarray]:
        """A float32 copy of a state; exact, as no backend keeps more than float32."""
        ...

    def from_numpy(self, state: State[np.ndarray]) -> State[Any]:
        """The inverse of ``to_numpy``."""
        ...


@dataclass(frozen=True, kw_only=True)
class BackendRow:
    """One kind of backend."""

    module: str
    """Has ``load(checkpoint, *, device, dtype, threads) -> Backend``."""

    devices: tuple[str, ...]
    """The kinds of device it runs on."""

    requires: str
    """The module it needs."""

    extra: str | None
    """The extra of this package that installs it; None for what every installation has."""


BACKENDS: dict[str, BackendRow] = {
    "native": BackendRow(
        module="rookery.generate.native_backend",
        devices=("cpu",),
        requires="rookery.native._engine",
        extra=None,
    ),
    "torch": BackendRow(
        module="rookery.generate.torch_backend",
        devices=("cpu", "cuda", "mps", "xpu"),
        requires="torch",
        extra="train",
    ),
}
"""Name -> backend, the preferred one first: on a CPU the native engine."""


def choose(name: str | None = None, device: str | None = None) -> str:
    """The name of the backend that a model would be opened with.

    Args:
        name: force one.
        device: where to run, such as ``"cpu"`` or ``"cuda:1"``; by default CUDA where torch can use it, else
            the CPU.

    Raises:
        ConfigError: there is no such backend, or none for the device.
        MissingExtraError: what it needs is not installed.
    """
    if name is not None and name not in BACKENDS:
        raise ConfigError(f"there is no backend {name!r}; there are {', '.join(BACKENDS)}")
    rows = {each: row for each, row in BACKENDS.items() if name in (None, each)}
    if device is None and name is None:
        device = "cuda" if _torch_has_cuda() else "cpu"
    kind = None if device is None else device.split(":")[0]
    fitting = {each: row for each, row in rows.items() if kind is None or kind in row.devices}
    if not fitting:
        devices = dict.fromkeys(device for row in rows.values() for device in row.devices)
        raise ConfigError(f"nothing here runs on the device {device!r}; known are {', '.join(devices)}")
    for each, row in fitting.items():
        if _installed(row.requires):
            return each
    for each, row in fitting.items():
        if row.extra is not None:
            require(row.requires, extra=row.extra, purpose="Running a model")
            return each
    raise MissingExtraError(
        "Running a model needs the native engine, which was not built: pip install . in the source's folder"
    )


def open_backend(
    checkpoint: Checkpoint,
    *,
    name: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
) -> Backend:
    """Load the weights into the backend that ``choose`` names.

    Args:
        checkpoint: the weights.
        name: force a backend.
        device: where to run.
        dtype: a name of ``DTYPES``; by default the backend's choice.
        threads: of the CPU; by default all cores.

    Raises:
        ConfigError, MissingExtraError: as ``choose``, or the type is unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"there is no number type {dtype!r}; there are {', '.join(DTYPES)}")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be 1 or more, not {threads}")
    module = import_module(BACKENDS[choose(name, device)].module)
    return module.load(
        checkpoint, device=device, dtype=None if dtype is None else DTYPES[dtype], threads=threads
    )


# What a GPU that torch calls "cuda" shows itself by: NVIDIA's driver, the same in Windows' Linux, AMD's.
_GPUS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def _torch_has_cuda() -> bool:
    """Whether torch can use a GPU; asked only where one may be there, since importing torch takes seconds."""
    row = BACKENDS["torch"]
    if not any(Path(gpu).exists() for gpu in _GPUS) or not _installed(row.requires):
        return False
    try:
        return import_module(row.module).has_cuda()
    except (ImportError, OSError):
        return False


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
