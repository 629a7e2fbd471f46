"""Token shift: every layer mixes its input with the input one position before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rookery.ops.fused.operators import add_up, kernels_of, kernels_serve, power_of_two, product_dtype
from rookery.ops.native import kernels
from rookery.ops.tensors import bytes_of, contiguous, rows_together
from rookery.ops.triton import marks_of

__all__ = ["token_shift", "token_shift_formula"]


def token_shift(
    x: Tensor,
    last: Tensor | None,
    weights: Sequence[Tensor] | Tensor,
    *,
    starts: Tensor | None = None,
    to_present: bool = False,
) -> list[Tensor]:
    """Go from the present input to the previous one by a weight: 0 gives the present, 1 the previous.

    Args:
        x: [B, T, D].
        last: [B, D], the input before ``x[:, 0]``; None for zeros, at the start of a text.
        weights: each [1, 1, D], or each [B, T, D]; the latter may be one tensor [n, B, T, D], whose gradient
            is then made as one.
        starts: [B, T] bool; the first token of a document has zeros before it.
        to_present: the other way, as RWKV-4 and 5 do it: 0 gives the previous input, 1 the present.

    Returns:
        One [B, T, D] for each weight, in the wider dtype of x and the weight; on a GPU under autocast in its
        dtype, since matrix products read them.
    """
    if kernels_serve(x, last, *weights):
        before = None if last is None else last.to(x.dtype)
        together = isinstance(weights, Tensor)
        given = [weights] if together else list(weights)
        varying = together or weights[0].shape[:2] != (1, 1)
        dtype = product_dtype(x.device.type)
        return _forward(x, before, given, starts, to_present, varying, dtype)
    return token_shift_formula(x, last, weights, starts=starts, to_present=to_present)


def token_shift_formula(
    x: Tensor,
    last: Tensor | None,
    weights: Sequence[Tensor] | Tensor,
    *,
    starts: Tensor | None = None,
    to_present: bool = False,
) -> list[Tensor]:
    """In plain torch."""
    if last is None:
        previous = F.pad(x, (0, 0, 1, -1))
    else:
        previous = torch.cat((last.to(x.dtype)[:, None], x[:, :-1]), dim=1)
    if starts is not None:
        previous = previous.masked_fill(starts[..., None], 0)
    origin, target = (previous, x) if to_present else (x, previous)
    difference = target - origin
    return [torch.addcmul(origin, difference, weight) for weight in weights]


def _each(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """One by one, where all are one tensor."""
    return weights[0].unbind() if weights[0].dim() == 4 else weights


@torch.library.custom_op("rookery::token_shift", mutates_args=(), device_types="cpu")
def _forward(
    x: Tensor,
    last: Tensor | None,
    weights: Sequence[Tensor],
    starts: Tensor | None,
    to_present: bool,
    varying: bool,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    outputs = _empty_outputs(x, last, weights, starts, to_present, varying, dtype)
    kernels.token_shift_forward(
        rows_together(x),
        None if last is None else rows_together(last)[:, None],
        bytes_of(starts),
        [rows_together(weight) for weight in _each(weights)],
        to_present,
        varying,
        outputs,
        torch.get_num_threads(),
    )
    return outputs


class _Launch:
    """What both Triton kernels are given: inputs, sizes, and what they are compiled for."""

    def __init__(self, x: Tensor, last: Tensor | None, weights: Sequence[Tensor], starts: Tensor | None):
        B, T, D = x.shape
        # In training a line of 128 bytes of bfloat16, and so many tokens that what a tile leaves of the
        # weights' gradients is a thirty-second of what it reads of the outputs'.
        tall = power_of_two(T, 64)
        wide = power_of_two(D, min(1024, 4096 // tall))
        blocks = -(-T // tall)
        self.blocks = B * blocks
        self.grid = (B * blocks * -(-D // wide),)
        self.inputs = (
            contiguous(x),
            # Any place to point at, where nothing is read.
            x if last is None else contiguous(last),
            marks_of(starts, x),
            tuple(contiguous(weight) for weight in _each(weights)),
        )
        self.sizes = (T, D, blocks)
        self.constants: dict[str, Any] = {
            "COUNT": len(self.inputs[-1]),
            "LAST": last is not None,
            "STARTS": starts is not None,
            "BT": tall,
            "BD": wide,
            "num_warps": 8,
        }


@_forward.register_kernel("cuda")
def _forward_by_triton(
    x: Tensor,
    last: Tensor | None,
    weights: Sequence[Tensor],
    starts: Tensor | None,
    to_present: bool,
    varying: bool,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    outputs = _empty_outputs(x, last, weights, starts, to_present, varying, dtype)
    call = _Launch(x, last, weights, starts)
    kernels_of("token_shift").forward[call.grid](
        *call.inputs, tuple(outputs), *call.sizes, TO_PRESENT=to_present, VARYING=varying, **call.constants
    )
    return outputs


@_forward.register_fake
def _empty_outputs(
    x: Tensor,
    last: Tensor | None,
    weights: Sequence[Tensor],
    starts: Tensor | None,
    to_present: bool,
    varying: bool,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    dtypes = [dtype or torch.promote_types(x.dtype, weight.dtype) for weight in _each(weights)]
    return [x.new_empty(x.shape, dtype=each) for each in dtypes]


@torch.library.custom_op("rookery::token_shift_backward", mutates_args=(), device_types="cpu")
def _backward(
    x: Tensor,
    last: Tensor | None,
    weights: Sequence[Tensor],
    starts: Tensor | None,
    to_present: bool,
    varying: bool,
    doutputs: Sequence[Tensor],
) -> list[Tensor]:
    dx, dlast, *dweights = _empty_gradients(x, last, weights, starts, to_present, varying, doutputs)
    sums = None if varying else x.new_empty(len(weights), x.shape[2], dtype=torch.float32)
    kernels.token_shift_backward(
        rows_together(x),
        None if last is None else rows_together(last)[:, None],
        bytes_of(starts),
        [rows_together(weight) for weight in _each(weights)],
        to_present,
        varying,
        [rows_together(each) for each in doutputs],
        dx,
        None if last is None else dlast[:, None],
        list(_each(dweights)) if varying else [],
        sums,
        torch.get_num_threads(),
    )
    if sums is not None:
        for gradient, total in zip(dweights, sums, strict=True):
            gradient.copy_(total.view_as(gradient))
    return [dx, dlast, *dweights]


@_backward.register_kernel("cuda")
def _backward_by_triton(
    x: Tensor,
    last: Tensor | None,
    weights: Sequence[Tensor],
    starts: Tensor | None,
    to_present: bool,
    varying: bool,
    doutputs: Sequence[Tensor],
) -> list[Tensor]:
    dx, dlast, *dweights = _empty_gradients(x, last, weights, starts, to_present, varying, doutputs)
    call = _Launch(x, last, weights, starts)
    partials = x.new_empty(0 if varying else call.blocks, len(weights), x.shape[2], dtype=torch.float32)
    on_outputs = tuple(contiguous(each) for each in doutputs)
    kernels_of("token_shift").backward[call.grid](
        *(*call.inputs, on_outputs, dx, dlast, tuple(_each(dweights)), partials, *call.sizes),
        TO_PRESENT=to_present,
        VARYING=varying,
        **call.constants,
    )
    if not varying:
        add_up(partials, dweights)
    return [dx, dlast, *dweights]


@_backward.register_fake
def _empty_gradients(
    x: Tensor,
    last: Tensor | None,
    weights: Sequence[Tensor],
    starts: Tensor | None,
    to_present: bool,
    varying: bool,
    doutputs: Sequence[Tensor],
) -> list[Tensor]:
    """Of x, of last (without one: nothing), and of each weight."""
    dlast = x.new_empty(0) if last is None else x.new_empty(last.shape)
    return [x.new_empty(x.shape), dlast, *(weight.new_empty(weight.shape) for weight in weights)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, last, weights, starts, ctx.to_present, ctx.varying, _dtype = inputs
    ctx.save_for_backward(x, last, starts, *weights)


def _gradients(ctx: Any, doutputs: list[Tensor]) -> tuple[Any, ...]:
    x, last, starts, *weights = ctx.saved_tensors
    dx, dlast, *dweights = _backward(x, last, weights, starts, ctx.to_present, ctx.varying, doutputs)
    return dx, None if last is None else dlast, dweights, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_keep)
