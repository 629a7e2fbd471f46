"""The loss of next-token prediction from what the head reads, without ever holding the logits of all tokens.

z = W x,    loss = sum over tokens of  log sum_j exp(z_j) - z_target

Of B 8, T 4096 and 65536 ids the logits are 4 GB in bfloat16, and what a softmax in float32 makes of them
17 GB more. Here they exist for one chunk of tokens at a time: its loss is followed at once by the gradient of
z, of x and of W, so that the backward pass has only to scale what it finds. On a GPU a Triton kernel puts the
gradient of z in the place of z; elsewhere, and in float64, it is plain torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rookery.ops.precision import autocasts, without_autocast
from rookery.ops.triton import INSTALLED, READS, triton_kernels

__all__ = ["linear_cross_entropy", "linear_cross_entropy_formula"]

# Logits of a chunk: 512 MiB in bfloat16. A chunk costs a pass over the gradient of W in float32, beside three
# products with W: with 4096 tokens of 65536 ids that pass is a small part.
CHUNK_LOGITS = 2**28
# On a CPU, 64 MiB in float32.
CHUNK_LOGITS_OF_CPU = 2**24


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    brake: float = 0.0,
    chunk: int | None = None,
) -> Tensor:
    """The sum of the losses of all tokens in nats, in float32 (float64); it can be differentiated once.

    Under autocast the products are in its dtype, as those of a linear layer; W's gradient is added up in
    float32.

    Args:
        x: [..., D], what the head reads.
        weight: W, [N, D].
        targets: [...] int64, the ids to predict.
        ignore_index: the target of tokens that contribute nothing to the loss.
        brake: at the largest logit z of each token, ignored ones too, the gradient gets ``brake * z``, times
            the gradient of the loss; the first of the largest where there are many. The loss stays as it is.
        chunk: tokens at a time; None: as many as have about 2^28 logits (2^24 on a CPU).

    Returns:
        A scalar.
    """
    device = x.device.type
    dtype = torch.promote_types(x.dtype, weight.dtype)
    if autocasts(device):
        dtype = torch.get_autocast_dtype(device) if dtype != torch.float64 else dtype
    if chunk is None:
        logits = CHUNK_LOGITS_OF_CPU if device == "cpu" else CHUNK_LOGITS
        chunk = max(1, logits // weight.shape[0])
    wanted = torch.is_grad_enabled()
    return _forward(
        x.flatten(0, -2),
        weight,
        targets.flatten(),
        dtype,
        ignore_index,
        brake,
        chunk,
        wanted and x.requires_grad,
        wanted and weight.requires_grad,
    )[0]


def linear_cross_entropy_formula(
    x: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, brake: float = 0.0
) -> Tensor:
    """In plain torch, with all logits at once."""
    logits = F.linear(x, weight).flatten(0, -2)
    full = logits.to(_accumulator(logits.dtype))
    loss = F.cross_entropy(full, targets.flatten(), ignore_index=ignore_index, reduction="sum")
    # A term whose value is 0 and whose gradient is that of half the square of the largest logits.
    penalty = 0.5 * brake * full.max(dim=-1).values.square().sum()
    return loss + penalty - penalty.detach()


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


Softmax = Callable[[Tensor, Tensor, Tensor, int, float, bool], Tensor]
"""Of logits [tokens, N], targets, an empty vector for the losses, ignore_index, brake and whether gradients
are wanted: writes the losses, gives the gradients of the logits."""


def softmax_by_torch(
    logits: Tensor, targets: Tensor, losses: Tensor, ignore_index: int, brake: float, gradient: bool
) -> Tensor:
    """See `Softmax`; in plain torch."""
    full = logits.to(losses.dtype)
    predicted = targets != ignore_index
    column = torch.where(predicted, targets, 0)[:, None]
    total = torch.logsumexp(full, dim=-1, keepdim=True)
    losses.copy_(torch.where(predicted, (total - full.gather(-1, column))[:, 0], 0))
    if not gradient:
        return logits
    found = (full - total).exp_().mul_(predicted[:, None])
    found.scatter_add_(-1, column, -predicted[:, None].to(found.dtype))
    if brake:
        largest, where = full.max(dim=-1, keepdim=True)
        found.scatter_add_(-1, where, largest * brake)
    return found.to(logits.dtype)


def softmax_by_triton(
    logits: Tensor, targets: Tensor, losses: Tensor, ignore_index: int, brake: float, gradient: bool
) -> Tensor:
    """See `Softmax`; the gradients are in the place of the logits."""
    kernels = triton_kernels("rookery.ops.fused.kernels.cross_entropy")
    tokens, N = logits.shape
    kernels.cross_entropy[(tokens,)](
        *(logits, targets, losses, N, float(brake), ignore_index),
        BLOCK=min(4096, 1 << (N - 1).bit_length()),
        GRADIENT=gradient,
        BRAKE=brake != 0,
        num_warps=8,
    )
    return logits


def _softmax(logits: Tensor) -> Softmax:
    serves = INSTALLED and logits.device.type == "cuda" and logits.dtype in READS
    return softmax_by_triton if serves else softmax_by_torch


# Before, a GPU adds products only to what has their factors' dtype (pytorch/pytorch, pull request 167931).
_ADDS_TO_WIDER = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 11)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left right, in the dtype of the total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.device.type != "cuda":
        total += left @ right
    elif _ADDS_TO_WIDER:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += torch.mm(left, right, out_dtype=total.dtype)


@torch.library.custom_op("rookery::linear_cross_entropy", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    ignore_index: int,
    brake: float,
    chunk: int,
    for_x: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _, dx, _ = _empty_results(x, weight, targets, dtype, ignore_index, brake, chunk, for_x, for_weight)
    accumulator = _accumulator(dtype)
    losses = x.new_empty(len(x), dtype=accumulator)
    total = weight.new_zeros(weight.shape if for_weight else (0,), dtype=accumulator)
    x, weight, targets = x.detach(), weight.detach(), targets.contiguous()
    with without_autocast(x.device.type):
        matrix = weight.to(dtype)
        for first in range(0, len(x), chunk):
            part = slice(first, first + chunk)
            read = x[part].to(dtype)
            logits = read @ matrix.T
            gradient = _softmax(logits)(
                logits, targets[part], losses[part], ignore_index, brake, for_x or for_weight
            )
            if for_x:
                dx[part] = gradient @ matrix
            if for_weight:
                _add_product(total, gradient.T, read)
    return losses.sum(), dx, total.to(weight.dtype)


@_forward.register_fake
def _empty_results(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    ignore_index: int,
    brake: float,
    chunk: int,
    for_x: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and its gradients with respect to x and W where they are wanted."""
    return (
        x.new_empty((), dtype=_accumulator(dtype)),
        x.new_empty(x.shape if for_x else (0,)),
        weight.new_empty(weight.shape if for_weight else (0,)),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.for_x, ctx.for_weight = inputs[-2:]
    ctx.save_for_backward(*output[1:])


def _gradients(ctx: Any, dloss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    wanted = (ctx.for_x, ctx.for_weight)
    found: list[Tensor | None] = [None] * 9
    if dloss is not None:
        # With an axis of its own, it is not rounded to the other's dtype before it is multiplied.
        scale = dloss.view(1)
        for i, gradient in enumerate(ctx.saved_tensors):
            found[i] = (gradient * scale).to(gradient.dtype) if wanted[i] else None
    return tuple(found)


_forward.register_autograd(_gradients, setup_context=_keep)
