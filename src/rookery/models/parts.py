"""Small parts that the time mixings of several versions share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rookery.ops.fused import head_norm, multiply

__all__ = ["HEAD_NORM_EPSILON", "HeadNorm", "low_rank", "vector"]

# Models are trained with it since RWKV-5.1, written as 1e-5 on outputs divided by 8. It is no detail: the
# median variance of a head's output is near 1e-6.
HEAD_NORM_EPSILON = 64e-5


class HeadNorm(nn.Module):
    """``ln_x``: normalises each head of each position by itself, before a gate; weight and bias are [A]."""

    def __init__(self, attention_width: int, *, eps: float = HEAD_NORM_EPSILON):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(attention_width))
        self.bias = nn.Parameter(torch.zeros(attention_width))
        self.eps = eps

    def forward(self, y: Tensor, g: Tensor | None = None) -> Tensor:
        """[B, T, H, V] -> [B, T, A], times silu(g) where there is a gate [B, T, A]."""
        return head_norm(y.flatten(2), g, self.weight, self.bias, heads=y.shape[2], epsilon=self.eps)


def vector(size: int) -> nn.Parameter:
    """A parameter for each channel, in the shape [1, 1, size] of official checkpoints."""
    return nn.Parameter(torch.zeros(1, 1, size))


def low_rank(
    x: Tensor,
    down: Tensor | nn.Module,
    up: Tensor | nn.Module,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """``activation(x @ down) @ up``: a matrix of low rank, by which the data moves a parameter.

    Args:
        x: [..., D].
        down: [D, rank], or the module that multiplies by it.
        up: [rank, A], likewise.
        activation: between the two; none by default.

    Returns:
        [..., A].
    """
    hidden = multiply(x, down)
    return multiply(hidden if activation is None else activation(hidden), up)
