"""RWKV-6's recurrence by Triton kernels (``kernels.py``), as ``torch.library`` operators.

RWKV-5's and GLA's are the same operators: RWKV-5's decay is [H, K], GLA has no bonus.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rookery.ops.tensors import contiguous, wants_gradients
from rookery.ops.triton import DEVICES, block, marks_of, precision, triton_kernels, value_block, warps

__all__ = ["wkv6_triton"]

# Tokens of a chunk, in the forward and in the backward pass, whose tiles fill the registers: 16, 32 or 64.
FORWARD, BACKWARD = 16, 16
# Tokens from one kept state to the next: what is kept is as large as the inputs, and not four times as large.
KEPT = 64


def wkv6_triton(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv6`: inputs in float32, bfloat16 or float16, the state in float32.

    log_w may be [H, K], a decay that does not vary; without u, a token reads the state after it was written.
    """
    keep = wants_gradients([x for x in (r, log_w, k, v, u, state) if x is not None])
    return _forward(r, log_w, k, v, u, state, starts, keep)[:2]


def _sizes(
    state: Tensor, log_w: Tensor, u: Tensor | None, starts: Tensor | None, chunk: int
) -> dict[str, Any]:
    """What the kernels are compiled for, but for the precision."""
    K, V = state.shape[-2:]
    return {
        "K": K,
        "V": V,
        "BK": block(K),
        "BV": block(V),
        "C": chunk,
        "LEVELS": chunk.bit_length() - 1,
        "SPAN": KEPT // chunk,
        "STARTS": starts is not None,
        "FIXED": log_w.dim() == 2,
        "AFTER": u is None,
        "num_warps": warps(K, V),
    }


@torch.library.custom_op("rookery::wkv6_triton", mutates_args=(), device_types=DEVICES)
def _forward(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = triton_kernels("rookery.ops.wkv6.kernels")
    outputs = _empty_outputs(r, log_w, k, v, u, state, starts, keep)
    y, after, states = outputs
    B, H = state.shape[:2]
    r, log_w, k, v, state = (contiguous(x) for x in (r, log_w, k, v, state))
    sizes = _sizes(state, log_w, u, starts, FORWARD)
    V = state.shape[3]
    sizes["BV"] = value_block(B * H, V)
    kernels.forward[(B * H, -(-V // sizes["BV"]))](
        *(r, log_w, k, v, state if u is None else contiguous(u), state),
        *(marks_of(starts, y), y, after, states, v.shape[1], H),
        KEEP=keep,
        PRECISION=precision(r, k, v),
        **sizes,
    )
    return outputs


@_forward.register_fake
def _empty_outputs(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y and the state after, and for the backward pass the states before spans."""
    B, H, K, V = state.shape
    spans = -(-v.shape[1] // KEPT)
    kept = state.new_empty((B, H, spans, K, V) if keep else (0,))
    return v.new_empty(v.shape), state.new_empty(state.shape), kept


@torch.library.custom_op("rookery::wkv6_triton_backward", mutates_args=(), device_types=DEVICES)
def _backward(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor | None,
    starts: Tensor | None,
    states: Tensor,
    dy: Tensor,
    dafter: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    kernels = triton_kernels("rookery.ops.wkv6.kernels")
    B, H, _, K, V = states.shape
    dr, dlog_w, dk, dv, du, dstate = _empty_gradients(r, log_w, k, v, u, starts, states, dy, dafter)
    # What is the same in every row: its gradients in them are added up.
    of_rows = states.new_empty(B, H, K)
    of_decays = states.new_empty(B, H, K) if log_w.dim() == 2 else dlog_w
    r, log_w, k, v, dy = (contiguous(x) for x in (r, log_w, k, v, dy))
    dafter = states.new_zeros(B, H, K, V) if dafter is None else contiguous(dafter)
    scratch = states.new_empty(B, H, KEPT // BACKWARD, K, V)
    kernels.backward[(B * H,)](
        *(r, log_w, k, v, states if u is None else contiguous(u)),
        *(marks_of(starts, dy), states, dy, dafter),
        *(dr, of_decays, dk, dv, of_rows, dstate, scratch, v.shape[1], H),
        PRECISION=precision(r, k, v),
        **_sizes(states, log_w, u, starts, BACKWARD),
    )
    if log_w.dim() == 2:
        dlog_w = of_decays.sum(0).to(dlog_w)
    if u is not None:
        du = of_rows.sum(0).to(du)
    return dr, dlog_w, dk, dv, du, dstate


@_backward.register_fake
def _empty_gradients(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor | None,
    starts: Tensor | None,
    states: Tensor,
    dy: Tensor,
    dafter: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, H, _, K, V = states.shape
    dr, dlog_w, dk, dv = (x.new_empty(x.shape) for x in (r, log_w, k, v))
    du = states.new_empty(0) if u is None else u.new_empty(u.shape)
    return dr, dlog_w, dk, dv, du, states.new_empty((B, H, K, V))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _state, starts, _keep = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, starts, output[2])


def _gradients(ctx: Any, dy: Tensor | None, dafter: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    *tensors, starts, states = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[3])
    dr, dlog_w, dk, dv, du, dstate = _backward(*tensors, starts, states, dy, dafter)
    return dr, dlog_w, dk, dv, None if tensors[4] is None else du, dstate, None, None


_forward.register_autograd(_gradients, setup_context=_keep)
