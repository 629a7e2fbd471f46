"""RWKV-4's recurrence in C++ on a CPU: token by token, sixteen channels at once (``csrc/training.h``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rookery.ops.native import chunks, kernels
from rookery.ops.tensors import bytes_of, contiguous, rows_together, wants_gradients

__all__ = ["wkv4_native"]


def wkv4_native(
    log_w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv4`: inputs in float32 or bfloat16, the state in float32."""
    keep = wants_gradients((log_w, u, k, v, state))
    return _forward(log_w.float(), u.float(), k, v, state, starts, keep)[:2]


@torch.library.custom_op("rookery::wkv4", mutates_args=(), device_types="cpu")
def _forward(
    log_w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, starts: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _empty_outputs(log_w, u, k, v, state, starts, keep)
    y, after, states = outputs
    kernels.wkv4_forward(
        contiguous(log_w),
        contiguous(u),
        rows_together(k),
        rows_together(v),
        contiguous(state),
        bytes_of(starts),
        y,
        after,
        states if keep else None,
        torch.get_num_threads(),
    )
    return outputs


@_forward.register_fake
def _empty_outputs(
    log_w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, starts: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y and the state after, and for the backward pass the states before chunks, p as a sum of two."""
    B, T, A = v.shape
    kept = state.new_empty((B, chunks(T), 4, A) if keep else (0,))
    return v.new_empty(v.shape), state.new_empty(state.shape), kept


@torch.library.custom_op("rookery::wkv4_backward", mutates_args=(), device_types="cpu")
def _backward(
    log_w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor | None,
    states: Tensor,
    dy: Tensor,
    dafter: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _, _, dk, dv, dstate = _empty_gradients(log_w, u, k, v, starts, states, dy, dafter)
    # Decay and bonus are the same in every row: their gradients in them are added up.
    dlog_w, du = (x.new_empty((v.shape[0], *x.shape)) for x in (log_w, u))
    kernels.wkv4_backward(
        contiguous(log_w),
        contiguous(u),
        rows_together(k),
        rows_together(v),
        bytes_of(starts),
        states,
        rows_together(dy),
        None if dafter is None else contiguous(dafter),
        dlog_w,
        du,
        dk,
        dv,
        dstate,
        torch.get_num_threads(),
    )
    return dlog_w.sum(0), du.sum(0), dk, dv, dstate


@_backward.register_fake
def _empty_gradients(
    log_w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor | None,
    states: Tensor,
    dy: Tensor,
    dafter: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, _, A = v.shape
    dlog_w, du, dk, dv = (x.new_empty(x.shape) for x in (log_w, u, k, v))
    return dlog_w, du, dk, dv, states.new_empty((B, 3, A))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _state, starts, _keep = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, starts, output[2])


def _gradients(ctx: Any, dy: Tensor | None, dafter: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    *tensors, starts, states = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[3])
    *gradients, dstate = _backward(*tensors, starts, states, dy, dafter)
    return *gradients, dstate, None, None


_forward.register_autograd(_gradients, setup_context=_keep)
