"""What RWKV-5 and 6 make of their recurrence's output: (norm(y) weight + bias) silu(g), in each head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rookery.ops.fused.operators import Tiles, add_up, kernels_of, product_dtype, triton_serves, widest
from rookery.ops.tensors import contiguous

__all__ = ["head_norm", "head_norm_formula"]


def head_norm(
    y: Tensor, g: Tensor | None, weight: Tensor, bias: Tensor, *, heads: int, epsilon: float
) -> Tensor:
    """The equation above.

    Args:
        y: [B, T, A], the recurrence's output.
        g: [B, T, A], the gate before its activation; None for none.
        weight, bias: [A].
        heads: H.
        epsilon: of the norm.

    Returns:
        [B, T, A], in the dtype that torch's layer norm gives it, or a wider one of the other inputs; on a GPU
        under autocast in its dtype, since a matrix product reads it.
    """
    if triton_serves(*_present(y, g, weight, bias)):
        return _forward(y, g, weight, bias, heads, epsilon, product_dtype(y.device.type))
    return head_norm_formula(y, g, weight, bias, heads=heads, epsilon=epsilon)


def head_norm_formula(
    y: Tensor, g: Tensor | None, weight: Tensor, bias: Tensor, *, heads: int, epsilon: float
) -> Tensor:
    """In plain torch."""
    y = y.unflatten(-1, (heads, -1))
    # A group norm over [B T, A] is the same, but takes 5 times as long on a CPU.
    normal = F.layer_norm(y, y.shape[-1:], eps=epsilon)
    found = torch.addcmul(bias, normal.flatten(-2), weight)
    return found if g is None else found * F.silu(g)


def _present(*given: Tensor | None) -> list[Tensor]:
    return [each for each in given if each is not None]


@torch.library.custom_op("rookery::head_norm", mutates_args=(), device_types="cuda")
def _forward(
    y: Tensor,
    g: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    heads: int,
    epsilon: float,
    dtype: torch.dtype | None,
) -> Tensor:
    result = _empty_result(y, g, weight, bias, heads, epsilon, dtype)
    tiles = Tiles(y, heads)
    # Any place to point at, where nothing is read.
    given = [contiguous(each) for each in (y, y if g is None else g, weight, bias)]
    kernels_of("head_norm").forward[tiles.grid](
        *given, result, tiles.rows, heads, epsilon, GATE=g is not None, **tiles.constants
    )
    return result


@_forward.register_fake
def _empty_result(
    y: Tensor,
    g: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    heads: int,
    epsilon: float,
    dtype: torch.dtype | None,
) -> Tensor:
    return y.new_empty(y.shape, dtype=dtype or widest(*_present(y, g, weight, bias)))


@torch.library.custom_op("rookery::head_norm_backward", mutates_args=(), device_types="cuda")
def _backward(
    y: Tensor,
    g: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    heads: int,
    epsilon: float,
    dresult: Tensor,
) -> list[Tensor]:
    gradients = _empty_gradients(y, g, weight, bias, heads, epsilon, dresult)
    dy, *dg, dweight, dbias = gradients
    tiles = Tiles(y, heads)
    partials = y.new_empty(tiles.blocks, 2, y.shape[2], dtype=torch.float32)
    given = [contiguous(each) for each in (y, y if g is None else g, weight, bias, dresult)]
    kernels_of("head_norm").backward[tiles.grid](
        *(*given, dy, *(dg or [dy]), partials, tiles.rows, heads, epsilon),
        GATE=g is not None,
        **tiles.constants,
    )
    add_up(partials, [dweight, dbias])
    return gradients


@_backward.register_fake
def _empty_gradients(
    y: Tensor,
    g: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    heads: int,
    epsilon: float,
    dresult: Tensor,
) -> list[Tensor]:
    """Of each input that there is."""
    return [each.new_empty(each.shape) for each in _present(y, g, weight, bias)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, g, weight, bias, ctx.heads, ctx.epsilon, _dtype = inputs
    ctx.save_for_backward(y, g, weight, bias)


def _gradients(ctx: Any, dresult: Tensor) -> tuple[Tensor | None, ...]:
    y, g, weight, bias = ctx.saved_tensors
    dy, *dg, dweight, dbias = _backward(y, g, weight, bias, ctx.heads, ctx.epsilon, dresult)
    return dy, dg[0] if dg else None, dweight, dbias, None, None, None


_forward.register_autograd(_gradients, setup_context=_keep)
