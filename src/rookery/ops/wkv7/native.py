"""RWKV-7's recurrence in C++ on a CPU: token by token, exact for any decay (``csrc/training.h``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rookery.ops.native import chunks, kernels
from rookery.ops.tensors import bytes_of, contiguous, rows_together, wants_gradients

__all__ = ["wkv7_native"]


def wkv7_native(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv7`: inputs in float32 or bfloat16, the state in float32."""
    keep = wants_gradients((r, log_w, k, v, a, b, state))
    return _forward(r, log_w, k, v, a, b, state, starts, keep)[:2]


@torch.library.custom_op("rookery::wkv7", mutates_args=(), device_types="cpu")
def _forward(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    starts: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _empty_outputs(r, log_w, k, v, a, b, state, starts, keep)
    y, after, states, found = outputs
    r, log_w, k, v, a, b = (rows_together(x) for x in (r, log_w, k, v, a, b))
    kept = (states, found) if keep else (None, None)
    kernels.wkv7_forward(
        r, log_w, k, v, a, b, contiguous(state), bytes_of(starts), y, after, *kept, torch.get_num_threads()
    )
    return outputs


@_forward.register_fake
def _empty_outputs(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    starts: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y and the state after, and of what the backward pass needs the states before chunks and what a read."""
    B, H, K, V = state.shape
    T = v.shape[1]
    return (
        v.new_empty(v.shape),
        state.new_empty(state.shape),
        state.new_empty((B, H, chunks(T), K, V) if keep else (0,)),
        state.new_empty((B, H, T, V) if keep else (0,)),
    )


@torch.library.custom_op("rookery::wkv7_backward", mutates_args=(), device_types="cpu")
def _backward(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    starts: Tensor | None,
    states: Tensor,
    found: Tensor,
    dy: Tensor,
    dafter: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = _empty_gradients(r, log_w, k, v, a, b, starts, states, found, dy, dafter)
    r, log_w, k, v, a, b = (rows_together(x) for x in (r, log_w, k, v, a, b))
    kernels.wkv7_backward(
        r,
        log_w,
        k,
        v,
        a,
        b,
        bytes_of(starts),
        states,
        found,
        rows_together(dy),
        None if dafter is None else contiguous(dafter),
        *gradients,
        torch.get_num_threads(),
    )
    return gradients


@_backward.register_fake
def _empty_gradients(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    starts: Tensor | None,
    states: Tensor,
    found: Tensor,
    dy: Tensor,
    dafter: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, H, _, K, V = states.shape
    dr, dlog_w, dk, dv, da, db = (x.new_empty(x.shape) for x in (r, log_w, k, v, a, b))
    return dr, dlog_w, dk, dv, da, db, states.new_empty((B, H, K, V))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _state, starts, _keep = inputs
    _, _, states, found = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, starts, states, found)


def _gradients(ctx: Any, dy: Tensor | None, dafter: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    *tensors, starts, states, found = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[3])
    *gradients, dstate = _backward(*tensors, starts, states, found, dy, dafter)
    return *gradients, dstate, None, None


_forward.register_autograd(_gradients, setup_context=_keep)
