"""AdamW in the recipe's groups, and the norm of gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from rookery.models import parameter_groups
from rookery.train.config import TrainConfig

__all__ = ["clip_gradients", "make_optimizer", "set_learning_rate"]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all parameters, each in the group that the recipe of its version puts it in.

    The fused kernel computes what the plain loop does, to rounding, in one pass over memory.
    """
    return torch.optim.AdamW(
        parameter_groups(model, weight_decay=config.weight_decay),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give each group its multiple of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> float:
    """Scale gradients down to a norm of `largest`, as torch's ``clip_grad_norm_`` does, to the bit.

    Where their norm is smaller they are not touched: a product with 1 is a pass over all of them.

    Returns:
        The norm of all gradients together, as it was.
    """
    given = list(parameters)
    norm = torch.nn.utils.get_total_norm([x.grad for x in given if x.grad is not None])
    found = float(norm)
    # torch's factor is `largest` over the norm and so much.
    if not found + 1e-6 < largest:
        torch.nn.utils.clip_grads_with_norm_(given, largest, norm)
    return found
