"""Small parts that the time mixings of several versions share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["HEAD_NORM_EPSILON", "HeadNorm", "full_precision", "low_rank", "vector"]

# Models are trained with it since RWKV-5.1, written as 1e-5 on outputs divided by 8. It is no detail: the
# median variance of a head's output is near 1e-6.
HEAD_NORM_EPSILON = 64e-5


class HeadNorm(nn.GroupNorm):
    """``ln_x``: normalises each head of each position by itself; weight and bias are [A]."""

    def __init__(self, num_heads: int, attention_width: int, *, eps: float = HEAD_NORM_EPSILON):
        super().__init__(num_heads, attention_width, eps=eps)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        """[B, T, H, V] -> [B, T, A]."""
        B, T, H, V = input.shape
        return super().forward(input.reshape(B * T, H * V)).view(B, T, H * V)


def vector(size: int) -> nn.Parameter:
    """A parameter for each channel, in the shape [1, 1, size] of official checkpoints."""
    return nn.Parameter(torch.zeros(1, 1, size))


def full_precision(x: Tensor) -> Tensor:
    """x in float32, or as it is where it is float64.

    Decays need it: those of slow channels lie within 1e-4 of 1, where bfloat16 has steps of 4e-3.
    """
    return x if x.dtype == torch.float64 else x.float()


def low_rank(
    x: Tensor, down: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """``activation(x @ down) @ up``: a matrix of low rank, by which the data moves a parameter.

    Args:
        x: [..., D].
        down: [D, rank].
        up: [rank, A].
        activation: between the two; none by default.

    Returns:
        [..., A].
    """
    hidden = x @ down
    return (hidden if activation is None else activation(hidden)) @ up
