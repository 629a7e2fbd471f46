"""What the operators over the C++ kernels (``csrc/training.h``) share.

Each is a pair of ``torch.library`` operators, forward and backward, so that autograd, torch.compile and
torch.export see through them. The kernels read and write torch's memory; torch's own threads run them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rookery.errors import find
from rookery.ops.dispatch import Implementation

__all__ = [
    "READS",
    "chunks",
    "kernels",
    "native_row",
]


kernels: Any = find("rookery.native._engine")
"""The extension, whose declarations know numpy's arrays alone, though it takes torch's as well.

None where it was not built; then other implementations compute.
"""

READS = (torch.float32, torch.bfloat16)
"""What the kernels read; they compute in float32."""


def native_row(run: Callable[..., tuple[Tensor, Tensor]]) -> Implementation:
    """The row of the native implementation in a recurrence's table."""
    return Implementation(
        name="native",
        run=run,
        devices=("cpu",),
        dtypes=(torch.float32,),
        reads=READS,
        installed=lambda: kernels is not None,
    )


def chunks(tokens: int) -> int:
    """How many states the kernels keep for the backward pass."""
    return -(-tokens // kernels.CHUNK_TOKENS)
