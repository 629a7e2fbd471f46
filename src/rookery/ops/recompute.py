"""A recurrence over segments of time that keeps only the states between them, and computes the rest again.

The intermediate tensors of a time-parallel form are many times larger than its inputs. Here a segment is
plain differentiable torch code; the forward pass keeps none of its graph, and the backward pass runs the
segments again, the last one first. One more forward pass is the price.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rookery.ops.precision import without_autocast

__all__ = ["recomputed"]

Segment = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor, Tensor | None], tuple[Tensor, Tensor]]


def recomputed(
    segment: Segment,
    parts: list[slice],
    fixed: Sequence[Tensor],
    moving: Sequence[Tensor],
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run a recurrence segment by segment.

    Args:
        segment: (fixed, moving, state, starts) of one segment -> (y, state after it).
        parts: the segments, as slices of time (axis 1).
        fixed: inputs without a time axis, the same for each segment.
        moving: inputs [B, T, ..].
        state: the state before the first token.
        starts: [B, T] bool, or None.

    Returns:
        y [B, T, ..] and the state after the last token.
    """
    return _Recomputed.apply(segment, parts, len(fixed), starts, state, *fixed, *moving)  # pyright: ignore[reportReturnType]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        segment: Segment,
        parts: list[slice],
        num_fixed: int,
        starts: Tensor | None,
        state: Tensor,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        fixed, moving = inputs[:num_fixed], inputs[num_fixed:]
        outputs, states = [], [state]
        for part in parts:
            y, after = segment(
                fixed, _cut(moving, part), states[-1], None if starts is None else starts[:, part]
            )
            outputs.append(y)
            states.append(after)
        if any(ctx.needs_input_grad):
            ctx.segment, ctx.parts, ctx.num_fixed = segment, parts, num_fixed
            ctx.save_for_backward(starts, *inputs, *states[:-1])
        return torch.cat(outputs, dim=1), states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dstate: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        starts, *tensors = ctx.saved_tensors
        states = tensors[-len(ctx.parts) :]
        inputs = tensors[: -len(ctx.parts)]
        fixed, moving = inputs[: ctx.num_fixed], inputs[ctx.num_fixed :]
        dfixed = [torch.zeros_like(x) for x in fixed]
        dmoving: list[tuple[Tensor, ...]] = []
        for part, state in zip(reversed(ctx.parts), reversed(states), strict=True):
            leaves = [x.detach().requires_grad_() for x in (state, *fixed, *_cut(moving, part))]
            with torch.enable_grad(), without_autocast(dy.device.type):
                fixed_leaves, moving_leaves = leaves[1 : 1 + len(fixed)], leaves[1 + len(fixed) :]
                part_starts = None if starts is None else starts[:, part]
                outputs = ctx.segment(fixed_leaves, moving_leaves, leaves[0], part_starts)
                grads = torch.autograd.grad(outputs, leaves, (dy[:, part], dstate), materialize_grads=True)
            dstate = grads[0]
            for total, grad in zip(dfixed, grads[1 : 1 + len(fixed)], strict=True):
                total += grad
            dmoving.append(grads[1 + len(fixed) :])
        whole = [torch.cat(cuts[::-1], dim=1) for cuts in zip(*dmoving, strict=True)]
        return (None, None, None, None, dstate, *dfixed, *whole)


def _cut(moving: Sequence[Tensor], part: slice) -> list[Tensor]:
    return [x[:, part] for x in moving]
