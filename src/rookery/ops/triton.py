"""What the operators over Triton kernels share.

The kernels of a recurrence are in its ``kernels.py``, which is imported by the first call that needs them:
where Triton is not installed, or there is no GPU, nothing else misses it. With ``TRITON_INTERPRET=1`` in the
environment Triton runs kernels in Python on a CPU, slowly, so that they can be tested anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from rookery.ops.dispatch import Implementation
from rookery.ops.tensors import bytes_of

__all__ = [
    "DEVICES",
    "ENOUGH_PROGRAMS",
    "INSTALLED",
    "READS",
    "block",
    "interpreting",
    "marks_of",
    "precision",
    "programs_at_once",
    "triton_kernels",
    "triton_row",
    "value_block",
    "warps",
]

READS = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels read; they compute in float32."""


def programs_at_once(warps: int) -> int:
    """Programs that the 132 multiprocessors of an H100 hold, where a thread has all of its 255 registers."""
    return 132 * max(1, 8 // warps)


ENOUGH_PROGRAMS = programs_at_once(4)
"""Of four warps, with which no multiprocessor has room left."""


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


DEVICES = ("cpu", "cuda") if interpreting() else ("cuda",)
"""The types of device that the kernels run on."""


INSTALLED = find_spec("triton") is not None
"""Whether Triton is installed; found out here, where torch.compile does not trace it."""


def triton_row(run: Callable[..., tuple[Tensor, Tensor]]) -> Implementation:
    """The row of the Triton implementation in a recurrence's table."""
    return Implementation(
        name="triton",
        run=run,
        devices=DEVICES,
        dtypes=(torch.float32,),
        reads=READS,
        installed=lambda: INSTALLED,
    )


def triton_kernels(module: str) -> Any:
    """Import a module of kernels; its functions are what `triton.jit` made of them, which has no types."""
    return import_module(module)


def marks_of(starts: Tensor | None, other: Tensor) -> Tensor:
    """Document boundaries as the kernels read them; without any, another tensor, since they read none."""
    marks = bytes_of(starts)
    return other if marks is None else marks


def block(channels: int) -> int:
    """The power of two that holds so many channels; 16 is the least that tensor cores multiply."""
    return max(16, 1 << (channels - 1).bit_length())


def precision(*tensors: Tensor) -> str:
    """How products are computed, as Triton names it.

    Where all inputs are of 16 bits, in TF32, whose rounding is below theirs; else in three products of TF32,
    which together have the digits of float32.
    """
    return "tf32" if all(x.dtype.itemsize == 2 for x in tensors) else "tf32x3"


def value_block(heads: int, value: int) -> int:
    """Value channels of a program that goes forward over `heads` heads of rows.

    The columns of a state do not depend on each other. Where heads are few, programs share those of a head,
    and each computes for itself what has no value channels. Two on each multiprocessor hide each other's
    latencies.
    """
    width = block(value)
    while width > 16 and heads * -(-value // width) < ENOUGH_PROGRAMS:
        width //= 2
    return width


def warps(key: int, value: int) -> int:
    """Warps of a program that holds a state of K by V numbers in its registers."""
    return 4 if block(key) * block(value) <= 64 * 64 else 8
