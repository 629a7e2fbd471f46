"""RWKV-7's recurrence by Triton kernels (``kernels.py``), as ``torch.library`` operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rookery.ops.tensors import contiguous, wants_gradients
from rookery.ops.triton import (
    DEVICES,
    ENOUGH_PROGRAMS,
    block,
    marks_of,
    precision,
    triton_kernels,
    value_block,
    warps,
)

__all__ = ["segment_tokens", "wkv7_triton"]

CHUNK = 16
# Chunks from one kept state to the next: what is kept is as large as the inputs, and not four times as large.
SPAN = 4
# Spans, at least, of a stretch of a row that a program of the backward pass has.
SHORTEST_STRETCH = 4
# Tokens that are worth three passes over a segment, and finding the states between segments.
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
    y, after = _in_segments(*(x[:, :whole] for x in inputs), state, marks, tokens)
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


def stretch_spans(spans: int, heads: int) -> int:
    """Spans of the stretches of a row that the backward pass goes through at once."""
    count = max(1, min(ENOUGH_PROGRAMS // heads, spans // SHORTEST_STRETCH))
    return -(-spans // count)


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


def _solve(inputs: Sequence[Tensor], marks: Tensor, sizes: dict[str, Any], into: Tensor) -> None:
    """Write the inverses of all chunks, [B, H, n, CHUNK, CHUNK]."""
    _, log_w, _, _, a, b = inputs
    B, H, n = into.shape[:3]
    own = {name: sizes[name] for name in ("K", "BK", "C", "STARTS", "PRECISION")}
    kernels = triton_kernels("rookery.ops.wkv7.kernels")
    kernels.solve[(n, B * H)](log_w, a, b, marks, into, log_w.shape[1], H, **own, num_warps=1)


def _advance(
    inputs: Sequence[Tensor],
    before: Tensor,
    marks: Tensor,
    inverses: Tensor,
    sizes: dict[str, Any],
    *,
    y: Tensor | None,
    after: Tensor,
    states: Tensor | None = None,
) -> None:
    """Write the state after all rows, and where there is memory for them y and the states before spans."""
    B, H, K, V = before.shape
    width = value_block(B * H, V)
    kernels = triton_kernels("rookery.ops.wkv7.kernels")
    kernels.forward[(B * H, -(-V // width))](
        *(*inputs, before, marks, inverses, after if y is None else y, after),
        *(after if states is None else states, inputs[0].shape[1], H),
        KEEP=states is not None,
        OUTPUT=y is not None,
        **sizes | {"V": V, "BV": width, "num_warps": warps(K, V)},
    )


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
    outputs = _empty_outputs(r, log_w, k, v, a, b, state, starts, keep)
    y, after, states, inverses = outputs
    B, H, K, V = state.shape
    inputs = [contiguous(x) for x in (r, log_w, k, v, a, b)]
    sizes = _sizes(K, V, starts, r, k, v, a, b)
    marks = marks_of(starts, y)
    if not keep:
        inverses = state.new_empty(B, H, -(-v.shape[1] // CHUNK), CHUNK, CHUNK)
    _solve(inputs, marks, sizes, inverses)
    _advance(
        inputs, contiguous(state), marks, inverses, sizes, y=y, after=after, states=states if keep else None
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
    B, H, spans, K, V = states.shape
    r, log_w, k, v, a, b, dy = (contiguous(x) for x in (r, log_w, k, v, a, b, dy))
    sizes = _sizes(K, V, starts, r, k, v, a, b)
    marks = marks_of(starts, dy)
    dends = states.new_zeros(B, H, 1, K, V) if dafter is None else contiguous(dafter).unsqueeze(2)
    stretch = stretch_spans(spans, B * H)
    stretches = -(-spans // stretch)
    T = v.shape[1]
    if stretches > 1:
        dafter, dends = dends, states.new_empty(B, H, stretches, K, V)
        width = value_block(B * H, V)
        kernels.retreat[(B * H, -(-V // width))](
            *(r, log_w, a, b, marks, inverses, dy, dafter, dends, T, H, stretch), **sizes | {"BV": width}
        )
    scratch = states.new_empty(B, H, stretches, SPAN, K, V)
    kernels.backward[(B * H, stretches)](
        *(r, log_w, k, v, a, b, marks, inverses, states, after, dy, dends),
        *(*gradients, scratch, T, H, stretch),
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


@torch.library.custom_op("rookery::wkv7_triton_segments", mutates_args=(), device_types=DEVICES)
def _in_segments(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    starts: Tensor | None,
    tokens: int,
) -> tuple[Tensor, Tensor]:
    """y and the state after rows of T tokens, a multiple of `tokens`; all segments of a row at once.

    What a segment makes of the state S before it is A S + C. As rows of their own, segments give C from no
    state, and A from the identity and no values; with these the states before all of them are found, and then
    y. It is some twice the work, in a fraction of the time: a chain of chunks is as long as a segment.
    """
    B, H, K, V = state.shape
    T = v.shape[1]
    count = T // tokens
    inputs = [contiguous(x).view(B * count, tokens, H, -1) for x in (r, log_w, k, v, a, b)]
    sizes = _sizes(K, V, starts, r, k, v, a, b)
    y = torch.empty_like(inputs[3])
    marks = marks_of(starts, y)
    inverses = state.new_empty(B * count, H, tokens // CHUNK, CHUNK, CHUNK)
    _solve(inputs, marks, sizes, inverses)

    learned = state.new_zeros(B, count, H, K, V)
    _advance(inputs, learned.flatten(0, 1), marks, inverses, sizes, y=None, after=learned)
    passed = torch.eye(K, dtype=state.dtype, device=state.device).expand(B, count, H, K, K).contiguous()
    no_values = [*inputs[:3], inputs[2].new_zeros(inputs[2].shape), *inputs[4:]]
    _advance(no_values, passed.flatten(0, 1), marks, inverses, sizes, y=None, after=passed)

    befores, after = torch.empty_like(learned), state.new_empty(state.shape)
    width = value_block(B * H, V)
    kernels = triton_kernels("rookery.ops.wkv7.kernels")
    kernels.compose[(B * H, -(-V // width))](
        *(passed, learned, contiguous(state), befores, after, count, H),
        K=K,
        V=V,
        BK=block(K),
        BV=width,
        num_warps=warps(K, V),
    )
    _advance(inputs, befores.flatten(0, 1), marks, inverses, sizes, y=y, after=learned)
    return y.view(B, T, H, V), after


@_in_segments.register_fake
def _empty_rows(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    starts: Tensor | None,
    tokens: int,
) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), state.new_empty(state.shape)
