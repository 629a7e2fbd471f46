"""RWKV-6's recurrence in C++ on a CPU: token by token, exact for any decay (``csrc/training.h``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rookery.ops.native import chunks, kernels
from rookery.ops.tensors import bytes_of, contiguous, rows_together, wants_gradients

__all__ = ["wkv6_native"]


def wkv6_native(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv6`: inputs in float32 or bfloat16, the state in float32."""
    keep = wants_gradients((r, log_w, k, v, u, state))
    return _forward(r, log_w, k, v, u.float(), state, starts, keep)[:2]


@torch.library.custom_op("rookery::wkv6", mutates_args=(), device_types="cpu")
def _forward(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    state: Tensor,
    starts: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _empty_outputs(r, log_w, k, v, u, state, starts, keep)
    y, after, states = outputs
    r, log_w, k, v = (rows_together(x) for x in (r, log_w, k, v))
    kernels.wkv6_forward(
        r,
        log_w,
        k,
        v,
        contiguous(u),
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
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    state: Tensor,
    starts: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y and the state after, and for the backward pass the states before chunks."""
    B, H, K, V = state.shape
    kept = state.new_empty((B, H, chunks(v.shape[1]), K, V) if keep else (0,))
    return v.new_empty(v.shape), state.new_empty(state.shape), kept


@torch.library.custom_op("rookery::wkv6_backward", mutates_args=(), device_types="cpu")
def _backward(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    starts: Tensor | None,
    states: Tensor,
    dy: Tensor,
    dafter: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dr, dlog_w, dk, dv, _, dstate = _empty_gradients(r, log_w, k, v, u, starts, states, dy, dafter)
    # The bonus is the same in every row: its gradients in them are added up.
    du = u.new_empty((r.shape[0], *u.shape))
    r, log_w, k, v = (rows_together(x) for x in (r, log_w, k, v))
    kernels.wkv6_backward(
        r,
        log_w,
        k,
        v,
        contiguous(u),
        bytes_of(starts),
        states,
        rows_together(dy),
        None if dafter is None else contiguous(dafter),
        dr,
        dlog_w,
        dk,
        dv,
        du,
        dstate,
        torch.get_num_threads(),
    )
    return dr, dlog_w, dk, dv, du.sum(0), dstate


@_backward.register_fake
def _empty_gradients(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    starts: Tensor | None,
    states: Tensor,
    dy: Tensor,
    dafter: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, H, _, K, V = states.shape
    dr, dlog_w, dk, dv, du = (x.new_empty(x.shape) for x in (r, log_w, k, v, u))
    return dr, dlog_w, dk, dv, du, states.new_empty((B, H, K, V))


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
