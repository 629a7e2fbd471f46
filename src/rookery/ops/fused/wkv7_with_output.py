"""RWKV-7's recurrence and what becomes of its output, as one function.

The bonus reads r, k and v beside the recurrence. As two operators, each would have gradients of them to
write, to be read and added up again. On a GPU the recurrence's backward pass gets the gradient of the bonus,
a number for each head and token, and writes the sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rookery.ops.fused.operators import product_dtype, triton_serves
from rookery.ops.fused.rwkv7_output import bonus_operator, output_operator, rwkv7_output
from rookery.ops.tensors import wants_gradients
from rookery.ops.wkv7 import prepare_wkv7, wkv7
from rookery.ops.wkv7.triton import backward_operator, forward_operator

__all__ = ["wkv7_with_output"]


def wkv7_with_output(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor,
    state: Tensor | None,
    *,
    r_k: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    starts: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``rwkv7_output`` of what ``wkv7`` reads from the state.

    Args:
        r, log_w, k, v, a, b, g: [B, T, A]; the recurrence's inputs and the gate.
        state: [B, H, K, K] before the first token; None for zeros.
        r_k: [H, K].
        weight, bias: of A numbers.
        epsilon: of the norm.
        starts: [B, T] bool, the first token of each document.
        implementation: of the recurrence; None chooses.

    Returns:
        The output [B, T, A], as ``rwkv7_output`` gives it, and the state after the last token.

    Raises:
        ConfigError, StateError: see ``wkv7``.
    """
    H, K = r_k.shape
    tensors = (r, log_w, k, v, a, b, g, r_k, weight, bias)
    heads = [each.unflatten(-1, (H, K)) for each in (r, log_w, k, v, a, b)]
    if triton_serves(*tensors) and wants_gradients(tensors if state is None else (*tensors, state)):
        row, before = prepare_wkv7(*heads, state=state, starts=starts, implementation=implementation)
        if row.name == "triton":
            found: tuple[Tensor, Tensor] = _Wkv7WithOutput.apply(  # pyright: ignore[reportAssignmentType]
                *tensors, before, starts, epsilon, product_dtype(r.device.type)
            )
            return found
    y, state = wkv7(*heads, state=state, starts=starts, implementation=implementation)
    vectors = {"r_k": r_k, "weight": weight, "bias": bias}
    return rwkv7_output(y.flatten(-2), r, k, v, g, **vectors, heads=H, epsilon=epsilon), state


class _Wkv7WithOutput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        r: Tensor,
        log_w: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        g: Tensor,
        r_k: Tensor,
        weight: Tensor,
        bias: Tensor,
        state: Tensor,
        starts: Tensor | None,
        epsilon: float,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor]:
        heads = [each.unflatten(-1, r_k.shape) for each in (r, log_w, k, v, a, b)]
        y, after, states, inverses = forward_operator(*heads, state, starts, True)
        read = y.flatten(-2)
        found = output_operator([read, r, k, v, g], [r_k, weight, bias], len(r_k), epsilon, dtype)
        ctx.epsilon = epsilon
        ctx.save_for_backward(
            r, log_w, k, v, a, b, g, r_k, weight, bias, starts, after, states, inverses, read
        )
        return found, after

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        r, log_w, k, v, a, b, g, r_k, weight, bias, *rest = ctx.saved_tensors
        starts, after, states, inverses, read = rest
        dresult, dafter = gradients
        dy, bonus, dv, dg, *dvectors = bonus_operator(
            [read, r, k, v, g], [r_k, weight, bias], len(r_k), ctx.epsilon, dresult
        )
        heads = [each.unflatten(-1, r_k.shape) for each in (r, log_w, k, v, a, b)]
        dy, dv = (each.unflatten(-1, r_k.shape) for each in (dy, dv))
        *dinputs, dstate = backward_operator(
            *heads, starts, after, states, inverses, dy, dafter, bonus, r_k, dv
        )
        return *(each.flatten(-2) for each in dinputs), dg, *dvectors, dstate, None, None, None
