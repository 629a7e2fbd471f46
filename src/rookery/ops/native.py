"""What the operators over the C++ kernels (``csrc/training.h``) share.

Each is a pair of ``torch.library`` operators, forward and backward, so that autograd, torch.compile and
torch.export see through them. The kernels read and write torch's memory; torch's own threads run them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rookery.errors import MissingExtraError
from rookery.ops.dispatch import Implementation

__all__ = [
    "READS",
    "bytes_of",
    "chunks",
    "contiguous",
    "kernels",
    "native_row",
    "numbers",
    "rows_together",
    "wants_gradients",
]


def _extension() -> Any:
    try:
        from rookery.native import _engine
    except MissingExtraError:
        return None
    return _engine


kernels: Any = _extension()
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


def wants_gradients(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd will ask for a backward pass, so that the forward pass has to keep what that needs."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def numbers(x: Tensor) -> Tensor:
    """A parameter as the kernels read it: its numbers in one run of float32."""
    return x.detach().float().contiguous().view(-1)


def rows_together(x: Tensor) -> Tensor:
    """x, outside of autograd, with the numbers of its last axis side by side; other axes of any stride."""
    x = x.detach()
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def contiguous(x: Tensor) -> Tensor:
    """x, outside of autograd, in one run of memory."""
    return x.detach().contiguous()


def bytes_of(starts: Tensor | None) -> Tensor | None:
    """Document boundaries as the kernels read them."""
    return None if starts is None else starts.contiguous().view(torch.uint8)


def chunks(tokens: int) -> int:
    """How many states the kernels keep for the backward pass."""
    return -(-tokens // kernels.CHUNK_TOKENS)
