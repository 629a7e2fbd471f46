"""The inputs of RWKV-7's recurrence, from what matrix products give.

log w   = -e^(-1/2) sigma(w0 + w)                in float32
a       = sigma(a0 + a)
kappa   = k k_k / |k k_k|                        in each head; in float32
k       = k (1 + (a - 1) k_a)
v       = v + (v_first - v) sigma(v0 + share)    above the first layer

The recurrence removes along -kappa and adds along kappa a.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rookery.ops.fused.operators import (
    Tiles,
    add_up,
    kernels_of,
    kernels_serve,
    narrows,
    product_dtype,
    widest,
)
from rookery.ops.native import kernels
from rookery.ops.tensors import contiguous, full_precision, numbers, rows_together

__all__ = ["Inputs7", "Mix7", "rwkv7_inputs", "rwkv7_inputs_formula"]

# No channel forgets faster than exp(-e^(-1/2)) = 0.545 a step: the chunked form relies on it.
_FASTEST_LOG_DECAY = -math.exp(-0.5)


class Inputs7(NamedTuple):
    """Inputs of the recurrence, each [B, T, A]."""

    log_w: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    """-kappa."""

    b: Tensor
    """kappa a."""


class Mix7(NamedTuple):
    """How a layer above the first one mixes its values with the first one's."""

    v_first: Tensor
    """[B, T, A]."""

    share: Tensor
    """[B, T, A], before v0 is added and the logistic function taken."""

    v0: Tensor
    """Of A numbers."""


def rwkv7_inputs(
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    mix: Mix7 | None,
    *,
    w0: Tensor,
    a0: Tensor,
    k_k: Tensor,
    k_a: Tensor,
    heads: int,
) -> Inputs7:
    """The equations above.

    Args:
        w, k, v, a: [B, T, A].
        mix: what v is mixed with; None in the first layer.
        w0, a0, k_k, k_a: of A numbers, [1, 1, A].
        heads: H.

    Returns:
        Each [B, T, A]: log_w in float32 (float64), v in its dtype, k in the widest dtype of what it is made
        of, a and b in float32 (float64). On a GPU k is in autocast's dtype where that is on, and a and b are
        in k's: of 16 bits the recurrence reads half as much, and multiplies it in one product, not in three.
        In training, under autocast in bfloat16, so is log_w: its rounding moves no horizon by more than 1/256
        (and the loss a thousand times less than all other roundings do); float16 would lose slow channels.
    """
    mixed = () if mix is None else mix
    if not kernels_serve(w, k, v, a, *mixed, w0, a0, k_k, k_a):
        return rwkv7_inputs_formula(w, k, v, a, mix, w0=w0, a0=a0, k_k=k_k, k_a=k_a, heads=heads)
    inputs = [w, k, a] if mix is None else [w, k, a, v, mix.v_first.to(v.dtype), mix.share]
    # Without a mix any vector does for v0.
    vectors = [w0, a0, w0 if mix is None else mix.v0, k_k, k_a]
    device = k.device.type
    dtype = product_dtype(device) or widest(k, a, a0, k_a) if narrows(device) else None
    rounds = product_dtype(device) == torch.bfloat16
    log_w, written, removed, added, *mixed = _forward(inputs, vectors, heads, dtype, rounds)
    return Inputs7(log_w, written, mixed[0] if mixed else v, removed, added)


def rwkv7_inputs_formula(
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    mix: Mix7 | None,
    *,
    w0: Tensor,
    a0: Tensor,
    k_k: Tensor,
    k_a: Tensor,
    heads: int,
) -> Inputs7:
    """In plain torch."""
    log_w = _FASTEST_LOG_DECAY * torch.sigmoid(full_precision(w0) + full_precision(w))
    rate = torch.sigmoid(a0 + a)
    kappa = F.normalize(full_precision(k * k_k).unflatten(-1, (heads, -1)), dim=-1, eps=1e-12).flatten(-2)
    if mix is not None:
        share = torch.sigmoid(mix.v0 + mix.share)
        v = torch.lerp(v, mix.v_first.to(v.dtype), share.to(v.dtype))
    return Inputs7(log_w, k * (1 + (rate - 1) * k_a), v, -kappa, kappa * rate)


def _in_order(w: Tensor, k: Tensor, a: Tensor, *mixed: Tensor) -> list[Tensor | None]:
    """The inputs as the kernels take them: w, k, v, v_first, a, share."""
    v, v_first, share = mixed or (None, None, None)
    return [w, k, v, v_first, a, share]


@torch.library.custom_op("rookery::rwkv7_inputs", mutates_args=(), device_types="cpu")
def _forward(
    inputs: Sequence[Tensor], vectors: Sequence[Tensor], heads: int, dtype: torch.dtype | None, rounds: bool
) -> list[Tensor]:
    results = _empty_results(inputs, vectors, heads, dtype, rounds)
    log_w, written, removed, added, *mixed = results
    kernels.rwkv7_inputs_forward(
        _in_order(*(rows_together(x) for x in inputs)),
        [numbers(x) for x in vectors],
        [log_w, written, mixed[0] if mixed else None, removed, added],
        heads,
        torch.get_num_threads(),
    )
    return results


def _all_six(inputs: Sequence[Tensor]) -> list[Tensor]:
    """w, k, a, v, v_first, share, as the Triton kernels take them; any tensor stands for absent ones."""
    return [*inputs, *[inputs[0]] * (6 - len(inputs))]


@_forward.register_kernel("cuda")
def _forward_by_triton(
    inputs: Sequence[Tensor], vectors: Sequence[Tensor], heads: int, dtype: torch.dtype | None, rounds: bool
) -> list[Tensor]:
    results = _empty_results(inputs, vectors, heads, dtype, rounds)
    given = _all_six([contiguous(x) for x in inputs])
    tiles = Tiles(given[0], heads)
    kernels_of("rwkv7_inputs").forward[tiles.grid](
        *given,
        *(contiguous(x) for x in vectors),
        *(results if len(results) == 5 else (*results, results[0])),
        tiles.rows,
        heads,
        MIXES=len(inputs) == 6,
        **tiles.constants,
    )
    return results


@_forward.register_fake
def _empty_results(
    inputs: Sequence[Tensor], vectors: Sequence[Tensor], heads: int, dtype: torch.dtype | None, rounds: bool
) -> list[Tensor]:
    """log_w, k, -kappa, kappa a, and where there is a mix v.

    dtype: of k, -kappa and kappa a; and of log_w, if it `rounds`.
    """
    _, k, a, *mixed = inputs
    full = torch.float32
    if dtype is None:
        dtypes = (full, widest(k, a, vectors[1], vectors[4]), full, full)
    else:
        dtypes = (dtype if rounds else full, *[dtype] * 3)
    results = [k.new_empty(k.shape, dtype=each) for each in dtypes]
    return [*results, mixed[0].new_empty(k.shape)] if mixed else results


@torch.library.custom_op("rookery::rwkv7_inputs_backward", mutates_args=(), device_types="cpu")
def _backward(
    inputs: Sequence[Tensor], vectors: Sequence[Tensor], heads: int, dresults: Sequence[Tensor]
) -> list[Tensor]:
    gradients = _empty_gradients(inputs, vectors, heads, dresults)
    dinputs, dvectors = gradients[: len(inputs)], gradients[len(inputs) :]
    dlog_w, dwritten, dremoved, dadded, *dmixed = (rows_together(x) for x in dresults)
    sums = inputs[0].new_empty(len(vectors), inputs[0].shape[2], dtype=torch.float32)
    kernels.rwkv7_inputs_backward(
        _in_order(*(rows_together(x) for x in inputs)),
        [numbers(x) for x in vectors],
        [dlog_w, dwritten, dmixed[0] if dmixed else None, dremoved, dadded],
        _in_order(*dinputs),
        sums,
        heads,
        torch.get_num_threads(),
    )
    for gradient, total in zip(dvectors, sums, strict=True):
        gradient.copy_(total.view_as(gradient))
    return gradients


@_backward.register_kernel("cuda")
def _backward_by_triton(
    inputs: Sequence[Tensor], vectors: Sequence[Tensor], heads: int, dresults: Sequence[Tensor]
) -> list[Tensor]:
    gradients = _empty_gradients(inputs, vectors, heads, dresults)
    dinputs, dvectors = gradients[: len(inputs)], gradients[len(inputs) :]
    given = _all_six([contiguous(x) for x in inputs])
    on_results = [contiguous(x) for x in dresults]
    tiles = Tiles(given[0], heads)
    mixes = len(inputs) == 6
    # Without a mix v0 has no gradient, and nothing is written into its sums.
    make = torch.empty if mixes else torch.zeros
    partials = make(tiles.blocks, 5, given[0].shape[2], dtype=torch.float32, device=given[0].device)
    kernels_of("rwkv7_inputs").backward[tiles.grid](
        *given,
        *(contiguous(x) for x in vectors),
        *(on_results if mixes else (*on_results, on_results[0])),
        *_all_six(dinputs),
        partials,
        tiles.rows,
        heads,
        MIXES=mixes,
        **tiles.constants,
    )
    add_up(partials, dvectors)
    return gradients


@_backward.register_fake
def _empty_gradients(
    inputs: Sequence[Tensor], vectors: Sequence[Tensor], heads: int, dresults: Sequence[Tensor]
) -> list[Tensor]:
    """Of each input, then of each vector."""
    return [x.new_empty(x.shape) for x in (*inputs, *vectors)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, vectors, ctx.heads, _dtype, _rounds = inputs
    ctx.count = len(tensors)
    ctx.save_for_backward(*tensors, *vectors)


def _gradients(ctx: Any, dresults: list[Tensor]) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)
    inputs, vectors = saved[: ctx.count], saved[ctx.count :]
    gradients = _backward(inputs, vectors, ctx.heads, dresults)
    return gradients[: ctx.count], gradients[ctx.count :], None, None, None


_forward.register_autograd(_gradients, setup_context=_keep)
