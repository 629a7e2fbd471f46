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
    programs_at_once,
    triton_kernels,
    value_block,
    warps,
)

__all__ = ["backward_operator", "backward_stretch", "forward_operator", "forward_stretch", "wkv7_triton"]

CHUNK = 16
# Chunks from one kept state to the next: what is kept is as large as the inputs, and not four times as large.
SPAN = 4
# Spans, at least, of a stretch of a row that a program has.
SHORTEST_STRETCH = 4
# Stretches, at least, that are worth going forward over a row three times.
FEWEST_STRETCHES = 4
# Stretches, at most, of rows whose heads fill a GPU; one more is as much memory as a span's states.
MOST_STRETCHES = 8


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
    return _forward(r, log_w, k, v, a, b, state, starts, keep)[:2]


def forward_stretch(spans: int, heads: int) -> int:
    """Spans of the stretches of a row that the forward pass goes through at once; all: it is not cut."""
    count = min(ENOUGH_PROGRAMS // heads, spans // SHORTEST_STRETCH)
    return -(-spans // count) if count >= FEWEST_STRETCHES else spans


def backward_stretch(spans: int, heads: int, programs: int) -> int:
    """Spans of the stretches of a row that the backward pass goes through at once; all: it is not cut.

    It is cut where that is shorter by a tenth, as far as can be said beforehand: stretches take their turns,
    `programs` at a time, after a pass for the state's gradient alone, of a fifth of the time for each span.
    """

    def time(count: int) -> float:
        stretch = -(-spans // count)
        turns = -(-heads * -(-spans // stretch) // programs)
        before = spans / 5 * -(-heads // ENOUGH_PROGRAMS)
        return 1.1 * (turns * stretch + before) if count > 1 else turns * stretch

    # More stretches than there are programs at once can only even out the last turn.
    most = min(max(MOST_STRETCHES, programs // heads), spans // SHORTEST_STRETCH)
    return -(-spans // min(range(1, max(1, most) + 1), key=time))


def backward_warps(key: int, value: int) -> int:
    """Warps of a program that holds a state and its gradient: of fewer, too much spills for the L1 cache."""
    return 4 if block(key) * block(value) < 64 * 64 else 8


def stages(key: int, value: int) -> int:
    """2: a chunk's inputs are copied to shared memory while the one before is computed.

    With more, heads of 64 would take more of it than GPUs for desktops have, 99 KB. Heads of 128 fill an
    H100's without any.
    """
    return 2 if block(key) * block(value) <= 64 * 64 else 1


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
        "num_stages": stages(key, value),
    }


def _solve(inputs: Sequence[Tensor], marks: Tensor, sizes: dict[str, Any], into: Tensor) -> None:
    """Write the inverses of all chunks, [B, H, n, CHUNK, CHUNK]."""
    _, log_w, _, _, a, b = inputs
    B, H, n = into.shape[:3]
    own = {name: sizes[name] for name in ("K", "BK", "C", "STARTS", "PRECISION")}
    kernels = triton_kernels("rookery.ops.wkv7.kernels")
    kernels.solve[(B * H * n,)](log_w, a, b, marks, into, log_w.shape[1], H, **own, num_warps=1)


def _advance(
    inputs: Sequence[Tensor],
    before: Tensor,
    marks: Tensor,
    inverses: Tensor,
    sizes: dict[str, Any],
    stretch: int,
    *,
    after: Tensor,
    y: Tensor | None = None,
    states: Tensor | None = None,
    learns: bool = True,
) -> None:
    """Write the states after stretches, and where there is memory for them y and the states before spans.

    Args:
        inputs: r, log_w, k, v, a, b.
        before: [B, H, n, K, V], the states before the n stretches.
        marks: see ``marks_of``.
        inverses: what ``_solve`` has written.
        sizes: see ``_sizes``.
        stretch: spans of a stretch.
        after: as `before`, and may be the same.
        y: as v.
        states: [B, H, spans, K, V].
        learns: False leaves the values out.
    """
    B, H, n, K, V = before.shape
    width = value_block(B * H * n, V)
    kernels = triton_kernels("rookery.ops.wkv7.kernels")
    kernels.forward[(B * H, -(-V // width), n)](
        *(*inputs, before, marks, inverses, after if y is None else y, after),
        *(after if states is None else states, inputs[0].shape[1], H, stretch),
        KEEP=states is not None,
        OUTPUT=y is not None,
        LEARNS=learns,
        **sizes | {"V": V, "BV": width, "num_warps": warps(K, V)},
    )


def _befores(
    inputs: Sequence[Tensor],
    state: Tensor,
    marks: Tensor,
    inverses: Tensor,
    sizes: dict[str, Any],
    stretch: int,
    after: Tensor,
) -> Tensor:
    """The states before all stretches, [B, H, n, K, V]; the state `after` the row is written."""
    B, H, K, V = state.shape
    n = -(-_spans(inputs[0].shape[1]) // stretch)
    learned = state.new_zeros(B, H, n, K, V)
    _advance(inputs, learned, marks, inverses, sizes, stretch, after=learned)
    passed = torch.eye(K, dtype=state.dtype, device=state.device).expand(B, H, n, K, K).contiguous()
    _advance(inputs, passed, marks, inverses, sizes, stretch, after=passed, learns=False)
    befores = torch.empty_like(learned)
    width = value_block(B * H, V)
    kernels = triton_kernels("rookery.ops.wkv7.kernels")
    kernels.compose[(B * H, -(-V // width))](
        *(passed, learned, state, befores, after, n),
        K=K,
        V=V,
        BK=block(K),
        BV=width,
        num_warps=warps(K, V),
    )
    return befores


def _spans(tokens: int) -> int:
    return -(-tokens // (SPAN * CHUNK))


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
    T = v.shape[1]
    if not keep:
        inverses = state.new_empty(B, H, -(-T // CHUNK), CHUNK, CHUNK)
    _solve(inputs, marks, sizes, inverses)
    stretch = forward_stretch(_spans(T), B * H)
    befores, afters = contiguous(state).unsqueeze(2), after.unsqueeze(2)
    if stretch < _spans(T):
        befores = _befores(inputs, befores[:, :, 0], marks, inverses, sizes, stretch, after)
        afters = torch.empty_like(befores)
    kept = states if keep else None
    _advance(inputs, befores, marks, inverses, sizes, stretch, after=afters, y=y, states=kept)
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
    return (
        v.new_empty(v.shape),
        state.new_empty(state.shape),
        state.new_empty((B, H, _spans(v.shape[1]), K, V) if keep else (0,)),
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
    bonus: Tensor | None = None,
    r_k: Tensor | None = None,
    dv_given: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients; where given, with what a bonus adds to them (see the kernels).

    Args:
        bonus: [B, T, H] float32, its gradient.
        r_k: [H, K].
        dv_given: as v, what is added to the gradient of v.
    """
    kernels = triton_kernels("rookery.ops.wkv7.backward_kernels")
    gradients = _empty_gradients(r, log_w, k, v, a, b, starts, after, states, inverses, dy, dafter)
    B, H, spans, K, V = states.shape
    r, log_w, k, v, a, b, dy = (contiguous(x) for x in (r, log_w, k, v, a, b, dy))
    sizes = _sizes(K, V, starts, r, k, v, a, b)
    marks = marks_of(starts, dy)
    dafters = states.new_zeros(B, H, 1, K, V) if dafter is None else contiguous(dafter).unsqueeze(2)
    stretch = backward_stretch(spans, B * H, programs_at_once(backward_warps(K, V)))
    stretches = -(-spans // stretch)
    T = v.shape[1]
    if stretches > 1:
        dafter, dafters = dafters, states.new_empty(B, H, stretches, K, V)
        width = value_block(B * H, V)
        kernels.retreat[(B * H, -(-V // width))](
            *(r, log_w, a, b, marks, inverses, dy, dafter, dafters, T, H, stretch), **sizes | {"BV": width}
        )
    scratch = states.new_empty(B, H, stretches, SPAN, K, V)
    given = (bonus, r_k, dv_given)
    kernels.backward[(B * H, stretches)](
        *(r, log_w, k, v, a, b, marks, inverses, states, after, dy, dafters),
        # Any place to point at, where nothing is read.
        *(dy if each is None else contiguous(each) for each in given),
        *(*gradients, scratch, T, H, stretch),
        BONUS=bonus is not None,
        **sizes | {"num_warps": backward_warps(K, V)},
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
    bonus: Tensor | None = None,
    r_k: Tensor | None = None,
    dv_given: Tensor | None = None,
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

# For an operator of which the recurrence is a part.
forward_operator, backward_operator = _forward, _backward
