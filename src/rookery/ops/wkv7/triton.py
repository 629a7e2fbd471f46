"""RWKV-7's recurrence by Triton kernels (``kernels.py``), as ``torch.library`` operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rookery.ops.native import bytes_of, contiguous, wants_gradients
from rookery.ops.triton import (
    DEVICES,
    ENOUGH_PROGRAMS,
    block,
    precision,
    triton_kernels,
    value_block,
    warps,
)

__all__ = ["segment_tokens", "wkv7_triton"]

CHUNK = 16
# Chunks from one kept state to the next: what is kept is as large as the inputs, and not four times as large.
SPAN = 4
# Tokens that the three passes over a segment, and finding the states between segments, are worth.
SHORTEST_SEGMENT = 256


def wkv7_triton(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv7`: inputs in float32, bfloat16 or float16, the state in float32."""
    keep = wants_gradients((r, log_w, k, v, a, b, state))
    B, T, H, _ = v.shape
    tokens = segment_tokens(T, B * H)
    if keep or tokens == T:
        return _forward(r, log_w, k, v, a, b, state, starts, keep)[:2]
    whole = T - T % tokens
    inputs = [r, log_w, k, v, a, b]
    marks = None if starts is None else starts[:, :whole]
    y, after = _in_segments([x[:, :whole] for x in inputs], state, marks, tokens)
    if whole == T:
        return y, after
    r, log_w, k, v, a, b = (x[:, whole:] for x in inputs)
    marks = None if starts is None else starts[:, whole:]
    last, after, *_ = _forward(r, log_w, k, v, a, b, after, marks, False)
    return torch.cat([y, last], dim=1), after


def segment_tokens(tokens: int, heads: int) -> int:
    """Tokens of the segments that a long row is cut into where its heads do not fill a GPU; T: it is not."""
    count = min(ENOUGH_PROGRAMS // heads, tokens // SHORTEST_SEGMENT)
    return tokens if count < 2 else -(-tokens // count // CHUNK) * CHUNK


def _in_segments(
    inputs: list[Tensor], state: Tensor, starts: Tensor | None, tokens: int
) -> tuple[Tensor, Tensor]:
    """The recurrence with all segments of a row at once, without gradients.

    What a segment makes of the state S before it is A S + C. As rows of their own, segments give C from no
    state, and A from the identity and no values; with these the states before all of them are found, and then
    y. It is three times the work, in a fraction of the time: a chain of chunks is as long as a segment.
    """
    B, H, K, V = state.shape
    T = inputs[0].shape[1]
    count = T // tokens
    r, log_w, k, v, a, b = (x.reshape(B * count, tokens, H, -1) for x in inputs)
    marks = None if starts is None else starts.reshape(B * count, tokens)
    nothing = state.new_zeros(B * count, H, K, V)
    identity = torch.eye(K, dtype=state.dtype, device=state.device).expand(B * count, H, K, K)
    _, learned, *_ = _forward(r, log_w, k, v, a, b, nothing, marks, False)
    no_values = v.new_zeros(B * count, tokens, H, K)
    _, passed, *_ = _forward(r, log_w, k, no_values, a, b, identity, marks, False)
    befores, after = _compose(passed.unflatten(0, (B, count)), learned.unflatten(0, (B, count)), state)
    y, *_ = _forward(r, log_w, k, v, a, b, befores.flatten(0, 1), marks, False)
    return y.reshape(B, T, H, V), after


@torch.library.custom_op("rookery::wkv7_triton_compose", mutates_args=(), device_types=DEVICES)
def _compose(passed: Tensor, learned: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The states before each segment, [B, n, H, K, V], and the one after the last."""
    kernels = triton_kernels("rookery.ops.wkv7.kernels")
    befores, after = _empty_states(passed, learned, before)
    B, count, H, K, V = learned.shape
    width = value_block(B * H, V)
    kernels.compose[(B * H, -(-V // width))](
        *(contiguous(passed), contiguous(learned), contiguous(before), befores, after, count, H),
        K=K,
        V=V,
        BK=block(K),
        BV=width,
        num_warps=warps(K, V),
    )
    return befores, after


@_compose.register_fake
def _empty_states(passed: Tensor, learned: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    return learned.new_empty(learned.shape), before.new_empty(before.shape)


def _sizes(key: int, value: int, starts: Tensor | None, *inputs: Tensor) -> dict[str, Any]:
    """What the kernels are compiled for."""
    return {
        "K": key,
        "V": value,
        "BK": block(key),
        "BV": block(value),
        "C": CHUNK,
        "SPAN": SPAN,
        "STARTS": starts is not None,
        "PRECISION": precision(*inputs),
        "num_warps": warps(key, value),
    }


@torch.library.custom_op("rookery::wkv7_triton", mutates_args=(), device_types=DEVICES)
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
    kernels = triton_kernels("rookery.ops.wkv7.kernels")
    outputs = _empty_outputs(r, log_w, k, v, a, b, state, starts, keep)
    y, after, states, kept = outputs
    B, H, K, V = state.shape
    T = v.shape[1]
    n = -(-T // CHUNK)
    r, log_w, k, v, a, b = (contiguous(x) for x in (r, log_w, k, v, a, b))
    sizes = _sizes(K, V, starts, r, k, v, a, b)
    marks = y if starts is None else bytes_of(starts)
    inverses = kept if keep else state.new_empty(B, H, n, CHUNK, CHUNK)
    own = {name: sizes[name] for name in ("K", "BK", "C", "STARTS", "PRECISION")}
    kernels.solve[(n, B * H)](log_w, a, b, marks, inverses, T, H, **own, num_warps=1)
    sizes["BV"] = value_block(B * H, V)
    kernels.forward[(B * H, -(-V // sizes["BV"]))](
        r, log_w, k, v, a, b, contiguous(state), marks, inverses, y, after, states, T, H, KEEP=keep, **sizes
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
    """y and the state after, and for the backward pass the states before spans and the chunks' inverses."""
    B, H, K, V = state.shape
    n = -(-v.shape[1] // CHUNK)
    spans = -(-n // SPAN)
    return (
        v.new_empty(v.shape),
        state.new_empty(state.shape),
        state.new_empty((B, H, spans, K, V) if keep else (0,)),
        state.new_empty((B, H, n, CHUNK, CHUNK) if keep else (0,)),
    )


@torch.library.custom_op("rookery::wkv7_triton_backward", mutates_args=(), device_types=DEVICES)
def _backward(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    starts: Tensor | None,
    after: Tensor,
    states: Tensor,
    inverses: Tensor,
    dy: Tensor,
    dafter: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    kernels = triton_kernels("rookery.ops.wkv7.backward_kernels")
    gradients = _empty_gradients(r, log_w, k, v, a, b, starts, after, states, inverses, dy, dafter)
    B, H, _, K, V = states.shape
    r, log_w, k, v, a, b, dy = (contiguous(x) for x in (r, log_w, k, v, a, b, dy))
    sizes = _sizes(K, V, starts, r, k, v, a, b)
    marks = dy if starts is None else bytes_of(starts)
    dafter = states.new_zeros(B, H, K, V) if dafter is None else contiguous(dafter)
    scratch = states.new_empty(B, H, SPAN, K, V)
    kernels.backward[(B * H,)](
        *(r, log_w, k, v, a, b, marks, inverses, states, after, dy, dafter),
        *(*gradients, scratch, v.shape[1], H),
        **sizes,
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
    after: Tensor,
    states: Tensor,
    inverses: Tensor,
    dy: Tensor,
    dafter: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, H, _, K, V = states.shape
    dr, dlog_w, dk, dv, da, db = (x.new_empty(x.shape) for x in (r, log_w, k, v, a, b))
    return dr, dlog_w, dk, dv, da, db, states.new_empty((B, H, K, V))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _state, starts, _keep = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, starts, *output[1:])


def _gradients(ctx: Any, dy: Tensor | None, dafter: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    *tensors, starts, after, states, inverses = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[3])
    *gradients, dstate = _backward(*tensors, starts, after, states, inverses, dy, dafter)
    return *gradients, dstate, None, None


_forward.register_autograd(_gradients, setup_context=_keep)
