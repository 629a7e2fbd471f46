"""sigmoid(g) x: how RWKV-4 to 6 let a receptance gate what comes out of a mixing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rookery.ops.fused.operators import kernels_of, product_dtype, triton_serves, widest
from rookery.ops.tensors import contiguous

__all__ = ["sigmoid_gate", "sigmoid_gate_formula"]

# Numbers of a program: two loads of 16 bytes for each thread, of bfloat16.
_BLOCK = 2048


def sigmoid_gate(x: Tensor, g: Tensor) -> Tensor:
    """sigmoid(g) x.

    Args:
        x, g: of one shape.

    Returns:
        Of that shape, in the wider dtype of both; on a GPU under autocast in its dtype.
    """
    if triton_serves(x, g):
        return _forward(x, g, product_dtype(x.device.type))
    return sigmoid_gate_formula(x, g)


def sigmoid_gate_formula(x: Tensor, g: Tensor) -> Tensor:
    """In plain torch."""
    return torch.sigmoid(g) * x


def _launch(kernel: Any, *tensors: Tensor) -> None:
    n = tensors[0].numel()
    kernel[(-(-n // _BLOCK),)](*tensors, n, BLOCK=_BLOCK, num_warps=4)


@torch.library.custom_op("rookery::sigmoid_gate", mutates_args=(), device_types="cuda")
def _forward(x: Tensor, g: Tensor, dtype: torch.dtype | None) -> Tensor:
    result = _empty_result(x, g, dtype)
    _launch(kernels_of("sigmoid_gate").forward, contiguous(x), contiguous(g), result)
    return result


@_forward.register_fake
def _empty_result(x: Tensor, g: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype or widest(x, g))


@torch.library.custom_op("rookery::sigmoid_gate_backward", mutates_args=(), device_types="cuda")
def _backward(x: Tensor, g: Tensor, dresult: Tensor) -> list[Tensor]:
    gradients = _empty_gradients(x, g, dresult)
    _launch(kernels_of("sigmoid_gate").backward, *(contiguous(each) for each in (x, g, dresult)), *gradients)
    return gradients


@_backward.register_fake
def _empty_gradients(x: Tensor, g: Tensor, dresult: Tensor) -> list[Tensor]:
    return [each.new_empty(each.shape) for each in (x, g)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gradients(ctx: Any, dresult: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(*ctx.saved_tensors, dresult), None)


_forward.register_autograd(_gradients, setup_context=_keep)
