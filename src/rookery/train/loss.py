"""The loss of next-token prediction, with the recipe's brake on large logits.

On a GPU the logits of all tokens are never held (``rookery.ops.fused.cross_entropy``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rookery.models.sequence_model import SequenceModel
from rookery.ops.fused import linear_cross_entropy
from rookery.train.data import IGNORED

__all__ = ["CHUNKED", "L2WRAP", "cross_entropy", "l2wrap", "loss_of_rows", "summed_loss"]

# The recipe's factor of the gradient on the largest logit of each position (RWKV-LM, `train_temp`).
L2WRAP = 1e-4

CHUNKED = {"cpu": False, "cuda": True}
"""Device types on which logits exist for one chunk of tokens at a time."""


def loss_of_rows(
    model: SequenceModel[Any, Any],
    inputs: Tensor,
    targets: Tensor,
    starts: Tensor | None,
    *,
    predicted: int,
    positions: int | None,
) -> Tensor:
    """The losses of rows, divided by a number of tokens; the gradient is that with ``l2wrap``.

    Args:
        model: called under the autocast that is in force.
        inputs: [B, T].
        targets: [B, T] int64; positions with ``IGNORED`` contribute nothing.
        starts: [B, T] bool, the first token of each document, or None.
        predicted: what the sum of the losses is divided by: targets of the whole optimizer step.
        positions: B T of the whole optimizer step; None leaves ``l2wrap`` out.
    """
    if _chunked(model, inputs):
        brake = 0.0 if positions is None else L2WRAP * predicted / positions
        return summed_loss(model, inputs, targets, starts=starts, brake=brake)[0] / predicted
    logits, _ = model(inputs, starts=starts)
    loss = cross_entropy(logits, targets) / predicted
    return loss if positions is None else l2wrap(loss, logits, positions=positions)


def summed_loss(
    model: SequenceModel[Any, Any],
    inputs: Tensor,
    targets: Tensor,
    state: Any = None,
    *,
    starts: Tensor | None = None,
    brake: float = 0.0,
) -> tuple[Tensor, Any]:
    """Sum of the losses in nats of all positions, in float32, and the state after the last.

    Args:
        brake: the factor of the gradient on the largest logits, where these are not held.
    """
    if not _chunked(model, inputs):
        logits, after = model(inputs, state, starts=starts)
        return cross_entropy(logits, targets), after
    read, after = model(inputs, state, starts=starts, head=False)
    loss = linear_cross_entropy(read, model.head.weight, targets, ignore_index=IGNORED, brake=brake)
    return loss, after


def _chunked(model: SequenceModel[Any, Any], inputs: Tensor) -> bool:
    # A head that something was put around, such as an adapter, is more than its matrix.
    return CHUNKED.get(inputs.device.type, False) and type(model.head) is nn.Linear


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the losses in nats of all positions, in float32.

    Args:
        logits: [B, T, N]
        targets: [B, T] int64; positions with ``IGNORED`` contribute nothing.
    """
    return F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def l2wrap(loss: Tensor, logits: Tensor, *, positions: int) -> Tensor:
    """The loss as it is, with one more gradient on the logits.

    At the largest logit z of each position the gradient gets ``L2WRAP / positions * z``, times the gradient
    that comes into the loss: that of half the square of the largest logits, which keeps them near 0.

    Args:
        loss: a scalar.
        logits: [B, T, N]
        positions: B T of the whole optimizer step, all micro-batches together.
    """
    wrapped: Tensor = _L2Wrap.apply(loss, logits, L2WRAP / positions)  # pyright: ignore[reportAssignmentType]
    return wrapped


class _L2Wrap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, logits: Tensor, factor: float) -> Tensor:
        largest, where = logits.detach().max(dim=-1, keepdim=True)
        ctx.save_for_backward(largest, where)
        ctx.factor, ctx.shape = factor, logits.shape
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        [gradient] = gradients
        largest, where = ctx.saved_tensors
        on_logits = torch.zeros(ctx.shape, dtype=largest.dtype, device=largest.device)
        on_logits.scatter_(-1, where, largest * (ctx.factor * gradient).to(largest.dtype))
        return gradient, on_logits, None
