"""y = max(x, 0)^2, the activation of channel mixing, whose gradient is that of y times 2 sqrt(y).

The product that reads y keeps it for its own gradient; x is then kept by none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rookery.ops.fused.operators import kernels_of, kernels_serve
from rookery.ops.native import kernels
from rookery.ops.tensors import contiguous

__all__ = ["squared_relu", "squared_relu_formula"]

# Numbers of a Triton program: two loads of 16 bytes for each thread, of bfloat16.
_BLOCK = 2048


def squared_relu_formula(x: Tensor) -> Tensor:
    """In plain torch."""
    return torch.relu(x).square()


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2, of x's shape and dtype."""
    return _forward(x) if kernels_serve(x) else squared_relu_formula(x)


@torch.library.custom_op("rookery::squared_relu", mutates_args=(), device_types="cpu")
def _forward(x: Tensor) -> Tensor:
    y = _empty(x)
    kernels.squared_relu_forward(contiguous(x), y, torch.get_num_threads())
    return y


@_forward.register_kernel("cuda")
def _forward_by_triton(x: Tensor) -> Tensor:
    y = _empty(x)
    n = x.numel()
    kernels_of("squared_relu").forward[(-(-n // _BLOCK),)](contiguous(x), y, n, BLOCK=_BLOCK, num_warps=4)
    return y


@_forward.register_fake
def _empty(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("rookery::squared_relu_backward", mutates_args=(), device_types="cpu")
def _backward(y: Tensor, dy: Tensor) -> Tensor:
    dx = _empty_gradient(y, dy)
    kernels.squared_relu_backward(contiguous(y), contiguous(dy), dx, torch.get_num_threads())
    return dx


@_backward.register_kernel("cuda")
def _backward_by_triton(y: Tensor, dy: Tensor) -> Tensor:
    dx = _empty_gradient(y, dy)
    n = y.numel()
    kernels_of("squared_relu").backward[(-(-n // _BLOCK),)](
        contiguous(y), contiguous(dy), dx, n, BLOCK=_BLOCK, num_warps=4
    )
    return dx


@_backward.register_fake
def _empty_gradient(y: Tensor, dy: Tensor) -> Tensor:
    return y.new_empty(y.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _gradient(ctx: Any, dy: Tensor) -> Tensor:
    return _backward(*ctx.saved_tensors, dy)


_forward.register_autograd(_gradient, setup_context=_keep)
