"""The loss of next-token prediction, with the recipe's brake on large logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rookery.train.data import IGNORED

__all__ = ["L2WRAP", "cross_entropy", "l2wrap"]

# The recipe's factor of the gradient on the largest logit of each position (RWKV-LM, `train_temp`).
L2WRAP = 1e-4


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
