"""What RWKV-7 makes of its recurrence's output: (norm(y) weight + bias + (r . (k r_k)) v) g.

The norm and the product of r, k and r_k, the bonus of the present token, are taken in each head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rookery.ops.fused.operators import Tiles, add_up, kernels_of, kernels_serve, product_dtype, widest
from rookery.ops.native import kernels
from rookery.ops.tensors import contiguous, numbers, rows_together

__all__ = ["bonus_operator", "output_operator", "rwkv7_output", "rwkv7_output_formula"]


def rwkv7_output(
    y: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    r_k: Tensor,
    weight: Tensor,
    bias: Tensor,
    heads: int,
    epsilon: float,
) -> Tensor:
    """The equation above.

    Args:
        y, r, k, v, g: [B, T, A]; y is the recurrence's output, g the gate.
        r_k, weight, bias: of A numbers.
        heads: H.
        epsilon: of the norm.

    Returns:
        [B, T, A], in the widest dtype of all inputs; on a GPU under autocast in its dtype, since a matrix
        product reads it.
    """
    inputs, vectors = [y, r, k, v, g], [r_k, weight, bias]
    if kernels_serve(*inputs, *vectors):
        return _forward(inputs, vectors, heads, epsilon, product_dtype(y.device.type))
    return rwkv7_output_formula(
        y, r, k, v, g, r_k=r_k, weight=weight, bias=bias, heads=heads, epsilon=epsilon
    )


def rwkv7_output_formula(
    y: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    r_k: Tensor,
    weight: Tensor,
    bias: Tensor,
    heads: int,
    epsilon: float,
) -> Tensor:
    """In plain torch."""
    y, r, k, v = (x.unflatten(-1, (heads, -1)) for x in (y, r, k, v))
    normal = F.layer_norm(y, y.shape[-1:], eps=epsilon)
    bonus = (r * k * r_k.view(heads, -1)).sum(dim=-1, keepdim=True) * v
    return (torch.addcmul(bias, normal.flatten(-2), weight) + bonus.flatten(-2)) * g


@torch.library.custom_op("rookery::rwkv7_output", mutates_args=(), device_types="cpu")
def _forward(
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor],
    heads: int,
    epsilon: float,
    dtype: torch.dtype | None,
) -> Tensor:
    result = _empty_result(inputs, vectors, heads, epsilon, dtype)
    kernels.rwkv7_output_forward(
        [rows_together(x) for x in inputs],
        [numbers(x) for x in vectors],
        result,
        heads,
        epsilon,
        torch.get_num_threads(),
    )
    return result


@_forward.register_kernel("cuda")
def _forward_by_triton(
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor],
    heads: int,
    epsilon: float,
    dtype: torch.dtype | None,
) -> Tensor:
    result = _empty_result(inputs, vectors, heads, epsilon, dtype)
    tiles = Tiles(inputs[0], heads)
    given = [contiguous(x) for x in (*inputs, *vectors)]
    kernels_of("rwkv7_output").forward[tiles.grid](
        *given, result, tiles.rows, heads, epsilon, **tiles.constants
    )
    return result


@_forward.register_fake
def _empty_result(
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor],
    heads: int,
    epsilon: float,
    dtype: torch.dtype | None,
) -> Tensor:
    return inputs[0].new_empty(inputs[0].shape, dtype=dtype or widest(*inputs, *vectors))


@torch.library.custom_op("rookery::rwkv7_output_backward", mutates_args=(), device_types="cpu")
def _backward(
    inputs: Sequence[Tensor], vectors: Sequence[Tensor], heads: int, epsilon: float, dresult: Tensor
) -> list[Tensor]:
    gradients = _empty_gradients(inputs, vectors, heads, epsilon, dresult)
    dinputs, dvectors = gradients[: len(inputs)], gradients[len(inputs) :]
    sums = inputs[0].new_empty(len(vectors), inputs[0].shape[2], dtype=torch.float32)
    kernels.rwkv7_output_backward(
        [rows_together(x) for x in inputs],
        [numbers(x) for x in vectors],
        rows_together(dresult),
        dinputs,
        sums,
        heads,
        epsilon,
        torch.get_num_threads(),
    )
    for gradient, total in zip(dvectors, sums, strict=True):
        gradient.copy_(total.view_as(gradient))
    return gradients


@_backward.register_kernel("cuda")
def _backward_by_triton(
    inputs: Sequence[Tensor], vectors: Sequence[Tensor], heads: int, epsilon: float, dresult: Tensor
) -> list[Tensor]:
    gradients = _empty_gradients(inputs, vectors, heads, epsilon, dresult)
    dinputs, dvectors = gradients[: len(inputs)], gradients[len(inputs) :]
    _launch_backward([*inputs, *vectors, dresult], dinputs, dvectors, heads, epsilon, bonus_alone=False)
    return gradients


def _launch_backward(
    given: Sequence[Tensor],
    dinputs: Sequence[Tensor],
    dvectors: Sequence[Tensor],
    heads: int,
    epsilon: float,
    *,
    bonus_alone: bool,
) -> None:
    """Write the gradients; see the kernel."""
    tiles = Tiles(given[0], heads)
    partials = given[0].new_empty(tiles.blocks, len(dvectors), given[0].shape[2], dtype=torch.float32)
    kernels_of("rwkv7_output").backward[tiles.grid](
        *(*(contiguous(x) for x in given), *dinputs, partials, tiles.rows, heads, epsilon),
        BONUS_ALONE=bonus_alone,
        **tiles.constants,
    )
    add_up(partials, dvectors)


@_backward.register_fake
def _empty_gradients(
    inputs: Sequence[Tensor], vectors: Sequence[Tensor], heads: int, epsilon: float, dresult: Tensor
) -> list[Tensor]:
    """Of each input, then of each vector."""
    return [x.new_empty(x.shape) for x in (*inputs, *vectors)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, vectors, ctx.heads, ctx.epsilon, _dtype = inputs
    ctx.count = len(tensors)
    ctx.save_for_backward(*tensors, *vectors)


def _gradients(ctx: Any, dresult: Tensor) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)
    inputs, vectors = saved[: ctx.count], saved[ctx.count :]
    gradients = _backward(inputs, vectors, ctx.heads, ctx.epsilon, dresult)
    return gradients[: ctx.count], gradients[ctx.count :], None, None, None


_forward.register_autograd(_gradients, setup_context=_keep)


@torch.library.custom_op("rookery::rwkv7_output_backward_of_bonus", mutates_args=(), device_types="cuda")
def _bonus_backward(
    inputs: Sequence[Tensor], vectors: Sequence[Tensor], heads: int, epsilon: float, dresult: Tensor
) -> list[Tensor]:
    gradients = _empty_bonus_gradients(inputs, vectors, heads, epsilon, dresult)
    dy, bonus, dv, dg, *dvectors = gradients
    given, dinputs = [*inputs, *vectors, dresult], [dy, bonus, bonus, dv, dg]
    _launch_backward(given, dinputs, dvectors, heads, epsilon, bonus_alone=True)
    return gradients


@_bonus_backward.register_fake
def _empty_bonus_gradients(
    inputs: Sequence[Tensor], vectors: Sequence[Tensor], heads: int, epsilon: float, dresult: Tensor
) -> list[Tensor]:
    """Of y, of the bonus [B, T, H] in float32 in place of r and k, of v, of g, and of each vector."""
    y, _, _, v, g = (x.new_empty(x.shape) for x in inputs)
    bonus = y.new_empty(*y.shape[:2], heads, dtype=torch.float32)
    return [y, bonus, v, g, *(x.new_empty(x.shape) for x in vectors)]


# For a function of which this is a part.
output_operator, bonus_operator = _forward, _bonus_backward
