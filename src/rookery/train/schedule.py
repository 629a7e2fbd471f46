"""The learning rate of each step, and how much of the budget is spent.

With p the spent part of the budget, lr0 the peak, f = lr1 / lr0 and s the number of steps done (RWKV-LM,
``train_temp``):

    lr = lr0 [(.5 + f/2) + (.5 - f/2) cos(pi p)]        times .01 + .99 s/W while s < W
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rookery.train.config import TrainConfig

__all__ = ["Budget", "learning_rate"]


def learning_rate(config: TrainConfig, *, step: int, spent: float) -> float:
    """The learning rate of the next step.

    Args:
        step: steps done.
        spent: the part of the budget that is used, 0 to 1.
    """
    ratio = config.last_learning_rate / config.learning_rate
    cosine = (0.5 + ratio / 2) + (0.5 - ratio / 2) * math.cos(math.pi * min(spent, 1.0))
    warmup = 0.01 + 0.99 * step / config.warmup_steps if step < config.warmup_steps else 1.0
    return config.learning_rate * cosine * warmup


@dataclass(frozen=True)
class Budget:
    """How long a run goes: a number of steps, or a number of seconds."""

    config: TrainConfig

    def spent(self, *, step: int, seconds: float) -> float:
        """The part of the budget that is used, 0 to 1."""
        if self.config.total_steps is not None:
            return min(step / self.config.total_steps, 1.0)
        assert self.config.minutes is not None
        return min(seconds / (self.config.minutes * 60), 1.0)

    def seconds_left(self, *, step: int, seconds: float) -> float | None:
        """Seconds to the end at the speed so far; None before the first step of a token budget."""
        if self.config.minutes is not None:
            return max(self.config.minutes * 60 - seconds, 0.0)
        spent = self.spent(step=step, seconds=seconds)
        return seconds * (1 - spent) / spent if spent > 0 else None
