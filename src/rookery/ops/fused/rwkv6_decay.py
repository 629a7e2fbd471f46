"""log w = -exp(base + x): RWKV-6's decay, of a parameter and of what the data adds to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rookery.ops.fused.operators import Tiles, add_up, kernels_of, product_dtype, triton_serves
from rookery.ops.tensors import contiguous, full_precision

__all__ = ["rwkv6_decay", "rwkv6_decay_formula"]


def rwkv6_decay(x: Tensor, base: Tensor, *, heads: int) -> Tensor:
    """The equation above.

    Args:
        x: [B, T, A].
        base: of A numbers.
        heads: H, by which a GPU shares the work.

    Returns:
        [B, T, A] in full precision: decays of slow channels lie within 1e-4 of 1. On a GPU under autocast to
        bfloat16 the logarithms are of that, which have enough digits, as those of RWKV-7.
    """
    if triton_serves(x, base):
        return _forward(x, base, heads, product_dtype(x.device.type) == torch.bfloat16)
    return rwkv6_decay_formula(x, base, heads=heads)


def rwkv6_decay_formula(x: Tensor, base: Tensor, *, heads: int) -> Tensor:
    """In plain torch."""
    return -torch.exp(full_precision(base) + full_precision(x))


@torch.library.custom_op("rookery::rwkv6_decay", mutates_args=(), device_types="cuda")
def _forward(x: Tensor, base: Tensor, heads: int, rounds: bool) -> Tensor:
    log_w = _empty_result(x, base, heads, rounds)
    tiles = Tiles(x, heads)
    kernels_of("rwkv6_decay").forward[tiles.grid](
        contiguous(x), contiguous(base), log_w, tiles.rows, heads, **tiles.constants
    )
    return log_w


@_forward.register_fake
def _empty_result(x: Tensor, base: Tensor, heads: int, rounds: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.bfloat16 if rounds else torch.float32)


@torch.library.custom_op("rookery::rwkv6_decay_backward", mutates_args=(), device_types="cuda")
def _backward(
    log_w: Tensor, base: Tensor, heads: int, dtype: torch.dtype, dlog_w: Tensor
) -> tuple[Tensor, Tensor]:
    dx, dbase = _empty_gradients(log_w, base, heads, dtype, dlog_w)
    tiles = Tiles(log_w, heads)
    partials = log_w.new_empty(tiles.blocks, 1, log_w.shape[2], dtype=torch.float32)
    kernels_of("rwkv6_decay").backward[tiles.grid](
        contiguous(log_w), contiguous(dlog_w), dx, partials, tiles.rows, heads, **tiles.constants
    )
    add_up(partials, [dbase])
    return dx, dbase


@_backward.register_fake
def _empty_gradients(
    log_w: Tensor, base: Tensor, heads: int, dtype: torch.dtype, dlog_w: Tensor
) -> tuple[Tensor, Tensor]:
    """Of x, which has this dtype, and of the base."""
    return log_w.new_empty(log_w.shape, dtype=dtype), base.new_empty(base.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, base, ctx.heads, _rounds = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(output, base)


def _gradients(ctx: Any, dlog_w: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(*ctx.saved_tensors, ctx.heads, ctx.dtype, dlog_w), None, None)


_forward.register_autograd(_gradients, setup_context=_keep)
