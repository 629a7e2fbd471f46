"""The sum of the residual stream and what a layer adds to it, and the layer norm of that sum.

total  = x + y
normal = (total - mean) / sqrt(variance + epsilon) weight + bias      over the channels of each token
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rookery.ops.fused.operators import add_up, kernels_of, power_of_two, product_dtype, triton_serves
from rookery.ops.tensors import contiguous
from rookery.ops.triton import ENOUGH_PROGRAMS, block

__all__ = ["add_norm", "add_norm_formula"]

# Numbers of a tile, eight for each thread of eight warps: with more, few programs find room on a processor.
_TILE = 2048


def add_norm(
    x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, *, epsilon: float
) -> tuple[Tensor, Tensor]:
    """The equations above; on a GPU one pass over memory each way.

    Args:
        x: [B, T, D], the residual stream.
        y: [B, T, D], what is added to it; None for nothing.
        weight, bias: [D].
        epsilon: of the norm.

    Returns:
        total [B, T, D], in the wider dtype of x and y, without y x itself; and normal [B, T, D], in the
        dtype that torch's layer norm gives it, which under autocast is float32. On a GPU under autocast
        normal is in autocast's dtype, since matrix products read it.
    """
    given = (x, weight, bias) if y is None else (x, y, weight, bias)
    if not triton_serves(*given):
        return add_norm_formula(x, y, weight, bias, epsilon=epsilon)
    found: tuple[Tensor, Tensor] = _AddNorm.apply(  # pyright: ignore[reportAssignmentType]
        x, y, weight, bias, epsilon, product_dtype(x.device.type)
    )
    return found


def add_norm_formula(
    x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, *, epsilon: float
) -> tuple[Tensor, Tensor]:
    """In plain torch."""
    total = x if y is None else x + y
    return total, F.layer_norm(total, total.shape[-1:], weight, bias, epsilon)


class _AddNorm(torch.autograd.Function):
    """A function and not an operator alone, since operators may not give x itself: its two gradients, of the
    stream and of the norm, are then added up where they are made.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        epsilon: float,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor]:
        found = _forward(x, y, weight, bias, epsilon, dtype)
        total, normal = (x, *found) if y is None else found
        ctx.epsilon, ctx.dtypes = epsilon, (x.dtype, None if y is None else y.dtype)
        ctx.save_for_backward(total, weight, bias)
        return total, normal

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total, weight, bias = ctx.saved_tensors
        dtotal, dnormal = gradients
        of_x, of_y = ctx.dtypes
        narrow = next((dtype for dtype in (of_y, of_x) if dtype not in (None, total.dtype)), None)
        found, on_weight, on_bias, *narrowed = _backward(
            total, weight, bias, dtotal, dnormal, ctx.epsilon, narrow
        )
        made = {each.dtype: each for each in (found, *narrowed)}
        dx, dy = (None if dtype is None else made.get(dtype, found) for dtype in (of_x, of_y))
        return dx, dy, on_weight, on_bias, None, None


def _tiles(x: Tensor) -> tuple[int, dict[str, int]]:
    """The rows of x, and the shape of a tile."""
    D = x.shape[-1]
    rows, wide = x.numel() // D, block(D)
    tall = power_of_two(rows, max(1, _TILE // wide))
    return rows, {"BR": tall, "BD": wide, "num_warps": 8 if wide <= _TILE else 16}


@torch.library.custom_op("rookery::add_norm", mutates_args=(), device_types="cuda")
def _forward(
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    results = _empty_results(x, y, weight, bias, epsilon, dtype)
    rows, constants = _tiles(x)
    kernels_of("add_norm").forward[(-(-rows // constants["BR"]),)](
        contiguous(x),
        # Any place to point at, where nothing is read.
        x if y is None else contiguous(y),
        contiguous(weight),
        contiguous(bias),
        results[0],
        results[-1],
        rows,
        x.shape[-1],
        epsilon,
        ADDS=y is not None,
        **constants,
    )
    return results


@_forward.register_fake
def _empty_results(
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    """The sum, where there is one, and its norm."""
    of_total = x.dtype if y is None else torch.promote_types(x.dtype, y.dtype)
    normal = x.new_empty(x.shape, dtype=dtype or of_total)
    return [normal] if y is None else [x.new_empty(x.shape, dtype=of_total), normal]


@torch.library.custom_op("rookery::add_norm_backward", mutates_args=(), device_types="cuda")
def _backward(
    total: Tensor,
    weight: Tensor,
    bias: Tensor,
    dtotal: Tensor,
    dnormal: Tensor,
    epsilon: float,
    narrow: torch.dtype | None,
) -> list[Tensor]:
    gradients = _empty_gradients(total, weight, bias, dtotal, dnormal, epsilon, narrow)
    found, on_weight, on_bias, *narrowed = gradients
    rows, constants = _tiles(total)
    # All at once on the device, with equal shares of the tiles; each adds up what these leave of the
    # gradients of weight and bias.
    programs = min(ENOUGH_PROGRAMS, -(-rows // constants["BR"]))
    partials = found.new_empty(programs, 2, total.shape[-1], dtype=torch.float32)
    kernels_of("add_norm").backward[(programs,)](
        *(contiguous(each) for each in (total, weight, dtotal, dnormal)),
        found,
        narrowed[0] if narrowed else found,
        partials,
        rows,
        total.shape[-1],
        epsilon,
        NARROW=narrow is not None,
        **constants,
    )
    add_up(partials, [on_weight, on_bias])
    return gradients


@_backward.register_fake
def _empty_gradients(
    total: Tensor,
    weight: Tensor,
    bias: Tensor,
    dtotal: Tensor,
    dnormal: Tensor,
    epsilon: float,
    narrow: torch.dtype | None,
) -> list[Tensor]:
    """Of the sum, of weight, of bias, and of the sum in the narrower dtype."""
    own = [each.new_empty(each.shape) for each in (total, weight, bias)]
    return own if narrow is None else [*own, total.new_empty(total.shape, dtype=narrow)]
