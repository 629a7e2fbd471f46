"""AdamW in the recipe's groups."""

from __future__ import annotations

import torch
from torch import nn

from rookery.models import parameter_groups
from rookery.train.config import TrainConfig

__all__ = ["make_optimizer", "set_learning_rate"]


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
