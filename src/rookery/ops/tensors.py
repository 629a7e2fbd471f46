"""Tensors as recurrences and kernels take them, in C++ and in Triton alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["bytes_of", "contiguous", "full_precision", "numbers", "rows_together", "wants_gradients"]


def wants_gradients(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd will ask for a backward pass, so that the forward pass has to keep what that needs."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def full_precision(x: Tensor) -> Tensor:
    """x in float32, or as it is where it is float64.

    Decays need it: those of slow channels lie within 1e-4 of 1, where bfloat16 has steps of 4e-3.
    """
    return x if x.dtype == torch.float64 else x.float()


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
