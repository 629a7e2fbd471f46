"""Initial values: the pieces that the recipes of all versions are made of.

The recipe is a part of the model: RWKV started from other values trains worse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Depth", "orthogonal", "ramp", "uniform", "zigzag"]


@dataclass(frozen=True)
class Depth:
    """Where a layer stands among all; recipes vary with it."""

    layer: int
    num_layers: int

    @property
    def rising(self) -> float:
        """0 in the first layer, 1 in the last (0 in a model of one layer)."""
        return self.layer / max(self.num_layers - 1, 1)

    @property
    def falling(self) -> float:
        """1 in the first layer, 1/L in the last."""
        return 1 - self.layer / self.num_layers

    @property
    def head_norm(self) -> float:
        """Weight of ``ln_x``: smaller in lower layers."""
        return ((self.layer + 1) / self.num_layers) ** 0.7


def ramp(size: int, *, closed: bool = False) -> Tensor:
    """[size]: channel i's place among all, i / size, or i / (size - 1) where closed."""
    return torch.arange(size, dtype=torch.float32) / (max(size - 1, 1) if closed else size)


def zigzag(size: int) -> Tensor:
    """[size]: 0, 1, -1, 0, 1, -1, ..., so that neighbouring channels differ."""
    return (torch.arange(size, dtype=torch.float32) + 1) % 3 - 1


def orthogonal(
    shape: Sequence[int], generator: torch.Generator, *, gain: float = 1.0, by_shape: bool = False
) -> Tensor:
    """A random (semi-)orthogonal matrix [rows, columns], times the gain.

    Args:
        by_shape: multiply by sqrt(rows / columns) as well where there are more rows than columns.
    """
    rows, columns = shape
    if by_shape:
        gain *= math.sqrt(max(1.0, rows / columns))
    return nn.init.orthogonal_(torch.empty(rows, columns), gain=gain, generator=generator)


def uniform(shape: Sequence[int], generator: torch.Generator, *, bound: float) -> Tensor:
    """Uniform in [-bound, bound)."""
    return torch.empty(*shape).uniform_(-bound, bound, generator=generator)
