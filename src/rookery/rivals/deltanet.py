"""DeltaNet (arXiv 2406.06484): linear attention that replaces what its state holds under a key.

q, k, v = silu(conv(W_q x)), silu(conv(W_k x)), silu(conv(W_v x))     over four tokens, channel by channel
q, k    = q / |q|, k / |k|  in each head
beta    = sigma(W_beta x)                                             one number for each head
o       = W_o norm(delta_rule(q, k, v, beta))                         the recurrence of rookery.ops.delta_rule
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rookery.models.initial import orthogonal, uniform
from rookery.ops import delta_rule
from rookery.rivals.config import RivalConfig
from rookery.rivals.mixing import RivalMixing

__all__ = ["DeltaNet", "DeltaNetState", "short_convolution"]

# Tokens that the short convolution sees, the present one among them.
_TAPS = 4


class DeltaNetState(NamedTuple):
    """What DeltaNet carries, in one layer, from one call to the next."""

    inputs: Tensor
    """[B, 3, 3 D]: the last inputs of the short convolution; zeros before a document."""

    memory: Tensor
    """[B, H, K, V], float32: S."""


class DeltaNet(RivalMixing):
    """The delta rule behind short convolutions."""

    def __init__(self, config: RivalConfig, layer: int):
        super().__init__(config, layer)
        D = config.width
        self.query = nn.Linear(D, D, bias=False)
        self.key = nn.Linear(D, D, bias=False)
        self.value = nn.Linear(D, D, bias=False)
        self.beta = nn.Linear(D, config.num_heads, bias=False)
        self.taps = nn.Parameter(torch.zeros(_TAPS, 1, 3 * D))
        self.norm_weight = nn.Parameter(torch.ones(D))
        self.output = nn.Linear(D, D, bias=False)

    def forward(
        self,
        x: Tensor,
        state: DeltaNetState | None,
        v_first: None,
        *,
        starts: Tensor | None = None,
        implementation: str | None = None,
    ) -> tuple[Tensor, DeltaNetState, None]:
        """See ``TimeMixing.forward``."""
        inputs, memory = (None, None) if state is None else state
        H = self.config.num_heads
        qkv = torch.cat((self.query(x), self.key(x), self.value(x)), dim=-1)
        qkv, inputs = short_convolution(qkv, self.taps, inputs, starts)
        q, k, v = F.silu(qkv).unflatten(-1, (3, H, -1)).unbind(2)
        y, memory = delta_rule(
            F.normalize(q, dim=-1),
            F.normalize(k, dim=-1),
            v,
            torch.sigmoid(self.beta(x)),
            memory,
            starts=starts,
            implementation=implementation,
        )
        y = F.rms_norm(y, y.shape[-1:], eps=self.config.norm_epsilon).flatten(2) * self.norm_weight
        return self.output(y), DeltaNetState(inputs, memory), None

    def state_shapes(self, streams: int) -> tuple[tuple[int, ...], ...]:
        """See ``RivalMixing.state_shapes``."""
        V = self.config.head_size
        return (streams, _TAPS - 1, 3 * self.config.width), (streams, self.config.num_heads, V, V)

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Orthogonal matrices, torch's range for a convolution of four taps, zeros before the sum."""
        D = self.config.width
        values = {f"{name}.weight": orthogonal((D, D), generator) for name in ("query", "key", "value")}
        return values | {
            "beta.weight": orthogonal((self.config.num_heads, D), generator),
            "taps": uniform((_TAPS, 1, 3 * D), generator, bound=_TAPS**-0.5),
            "norm_weight": torch.ones(D),
            "output.weight": torch.zeros(D, D),
        }


def short_convolution(
    x: Tensor, taps: Tensor, before: Tensor | None, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A causal convolution of each channel by itself, which does not cross documents.

    Args:
        x: [B, T, C].
        taps: [n, 1, C]; the first is for the present token, the next for the one before it.
        before: [B, n - 1, C], the last inputs of the last call; None for zeros.
        starts: [B, T] bool, the first token of each document: what is before it counts as zeros.

    Returns:
        [B, T, C], and the last n - 1 inputs of documents that go on, zeros in the place of others.
    """
    T, n = x.shape[1], taps.shape[0]
    before = x.new_zeros(x.shape[0], n - 1, x.shape[2]) if before is None else before.to(x.dtype)
    padded = torch.cat((before, x), dim=1)
    y = x * taps[0]
    if starts is None:
        for back in range(1, n):
            y = torch.addcmul(y, padded[:, n - 1 - back : n - 1 - back + T], taps[back])
        return y, padded[:, T:].clone()
    # Whether a document starts between a token and the one `back` before it.
    begun = F.pad(starts, (n - 1, 0))
    crossed = torch.zeros_like(starts)
    for back in range(1, n):
        crossed = crossed | begun[:, n - back : n - back + T]
        past = padded[:, n - 1 - back : n - 1 - back + T].masked_fill(crossed[..., None], 0)
        y = torch.addcmul(y, past, taps[back])
    # Of the last inputs, those that a later start cuts off from the next token.
    later = begun.int().flip(1).cumsum(1).flip(1) - begun.int()
    return y, padded[:, T:].masked_fill(later[:, T:, None] > 0, 0)
