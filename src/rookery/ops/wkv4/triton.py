"""RWKV-4's recurrence by Triton kernels (``kernels.py``), as ``torch.library`` operators."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rookery.ops.tensors import contiguous, wants_gradients
from rookery.ops.triton import DEVICES, interpreting, marks_of, triton_kernels

__all__ = ["wkv4_triton"]

# Tokens that a lane reads ahead, and from one kept state to the next.
TILE = 16
# Lanes that fill a GPU: 8 warps on each of 132 multiprocessors. Fewer are made so many by cutting time.
ENOUGH = 2**15
# The shortest segment of time, and the most segments: the pass over them is one after the other.
SHORTEST = 2 * TILE
MOST = 64


def wkv4_triton(
    log_w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv4`: inputs in float32, bfloat16 or float16, the state in float32."""
    keep = wants_gradients((log_w, u, k, v, state))
    return _forward(log_w.float(), u.float(), k, v, state, starts, keep)[:2]


class _Walk(NamedTuple):
    """How a call is dealt out to lanes."""

    rows: int
    tokens: int
    channels: int
    segments: int
    length: int
    """Tokens of a segment."""

    @classmethod
    def over(cls, v: Tensor) -> _Walk:
        B, T, A = v.shape
        n = max(1, min(ENOUGH // (B * A), T // SHORTEST, MOST))
        length = -(-T // (n * TILE)) * TILE
        return cls(B, T, A, -(-T // length), length)

    def run(self, kernel: Any, *tensors: Tensor | None, segments: int, **constants: Any) -> None:
        """Call a kernel that walks through so many segments of each row."""
        lanes = self.rows * segments * self.channels
        sizes = (self.tokens, self.channels, self.segments, self.length, lanes)
        together, warps = _program(lanes)
        kernel[(-(-lanes // together),)](
            *tensors, *sizes, TILE=TILE, LANES=together, num_warps=warps, **constants
        )

    def join(
        self, kernel: Any, *tensors: Tensor | None, length: tuple[int, ...] = (), **constants: Any
    ) -> None:
        """Call a kernel that goes from segment to segment."""
        lanes = self.rows * self.channels
        together, warps = _program(lanes)
        kernel[(-(-lanes // together),)](
            *tensors,
            self.channels,
            self.segments,
            *length,
            lanes,
            LANES=together,
            num_warps=warps,
            **constants,
        )

    @property
    def whole(self) -> bool:
        """Whether all segments are of one length."""
        return self.tokens == self.segments * self.length


def _program(lanes: int) -> tuple[int, int]:
    """Lanes and warps of one program. The interpreter takes as long for many lanes as for few."""
    return (min(4096, 1 << (lanes - 1).bit_length()), 1) if interpreting() else (64, 2)


@torch.library.custom_op("rookery::wkv4_triton", mutates_args=(), device_types=DEVICES)
def _forward(
    log_w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, starts: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernels = triton_kernels("rookery.ops.wkv4.kernels")
    outputs = _empty_outputs(log_w, u, k, v, state, starts, keep)
    walk = _Walk.over(v)
    log_w, u, k, v = (contiguous(x) for x in (log_w, u, k, v))
    marks = marks_of(starts, v)
    n = walk.segments
    spans = state.new_zeros(walk.rows, n, 4, walk.channels)
    spans[:, 0, :3] = state
    if n > 1:
        walk.run(kernels.sums, log_w, k, v, marks, spans, segments=n - 1, STARTS=starts is not None)
        cut = v if starts is None else _cut(starts, walk)
        walk.join(kernels.join, log_w, cut, spans, length=(walk.length,), STARTS=starts is not None)
    y, after, kept, ages = outputs
    walk.run(
        kernels.forward,
        *(log_w, u, k, v, marks, spans, y, after, ages, kept),
        segments=n,
        KEEP=keep,
        STARTS=starts is not None,
        WHOLE=walk.whole,
    )
    return outputs


def _cut(starts: Tensor, walk: _Walk) -> Tensor:
    """[B, n] uint8: whether a document starts in a segment, so that no state passes through it."""
    padded = pad(starts, (0, walk.segments * walk.length - walk.tokens))
    return padded.view(walk.rows, walk.segments, walk.length).any(-1).view(torch.uint8)


@_forward.register_fake
def _empty_outputs(
    log_w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, starts: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y and the state after; for the backward pass the states before tiles, and the age of the last p."""
    B, T, A = v.shape
    return (
        v.new_empty(v.shape),
        state.new_empty(state.shape),
        state.new_empty((B, -(-T // TILE), 4, A) if keep else (0,)),
        state.new_empty((B, A) if keep else (0,)),
    )


@torch.library.custom_op("rookery::wkv4_triton_backward", mutates_args=(), device_types=DEVICES)
def _backward(
    log_w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor | None,
    after: Tensor,
    kept: Tensor,
    ages: Tensor,
    dy: Tensor,
    dafter: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    kernels = triton_kernels("rookery.ops.wkv4.kernels")
    _, _, dk, dv, dstate = _empty_gradients(log_w, u, k, v, starts, after, kept, ages, dy, dafter)
    walk = _Walk.over(v)
    log_w, u, k, v, dy = (contiguous(x) for x in (log_w, u, k, v, dy))
    marks = marks_of(starts, v)
    n = walk.segments
    ends = after.new_zeros(walk.rows, n, 3, walk.channels)
    dp, winner = ages, ages
    if dafter is not None:
        ends[:, -1, :2] = dafter[:, :2]
        # The scaled sums a = A e^-p depend on p.
        dp = dafter[:, 2] - (dafter[:, :2] * after[:, :2]).sum(1)
        winner = (walk.tokens - 1 - ages).to(torch.int32)
    choices = {"STARTS": starts is not None, "WHOLE": walk.whole}
    if n > 1:
        walk.run(kernels.gradient_sums, log_w, u, k, v, marks, kept, dy, ends, segments=n - 1, **choices)
        walk.join(kernels.gradient_join, ends)
    dlog_w, du = (after.new_empty(walk.rows, n, walk.channels) for _ in range(2))
    walk.run(
        kernels.backward,
        *(log_w, u, k, v, marks, kept, dy, ends, dp, winner, dlog_w, du, dk, dv, dstate),
        segments=n,
        FINAL=dafter is not None,
        **choices,
    )
    # Decay and bonus are the same in every row: their gradients in them are added up.
    return dlog_w.sum((0, 1)), du.sum((0, 1)), dk, dv, dstate


@_backward.register_fake
def _empty_gradients(
    log_w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor | None,
    after: Tensor,
    kept: Tensor,
    ages: Tensor,
    dy: Tensor,
    dafter: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dlog_w, du, dk, dv, dstate = (x.new_empty(x.shape) for x in (log_w, u, k, v, after))
    return dlog_w, du, dk, dv, dstate


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _state, starts, _keep = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, starts, *output[1:])


def _gradients(ctx: Any, dy: Tensor | None, dafter: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    *tensors, starts, after, kept, ages = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[3])
    *gradients, dstate = _backward(*tensors, starts, after, kept, ages, dy, dafter)
    return *gradients, dstate, None, None


_forward.register_autograd(_gradients, setup_context=_keep)
