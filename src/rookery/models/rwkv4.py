"""Time mixing of RWKV-4 "Dove" (arXiv 2305.13048, eq. 11-17).

r, k, v = W_r x_r, W_k x_k, W_v x_v          of token-shifted inputs x_r, x_k, x_v
o       = W_o (sigma(r) * wkv(k, v))         with the recurrence of rookery.ops.wkv4
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from rookery.config import ModelConfig
from rookery.models.initial import orthogonal, ramp, zigzag
from rookery.models.parts import vector
from rookery.models.time_mixing import TimeMixing, TimeMixingState
from rookery.ops import wkv4
from rookery.ops.fused import sigmoid_gate, token_shift
from rookery.ops.tensors import full_precision

__all__ = ["TimeMixing4"]


class TimeMixing4(TimeMixing[ModelConfig]):
    """RWKV-4: a decayed average of values, weighed by the exponentials of their keys, channel by channel."""

    lr_scale: ClassVar[Mapping[str, float]] = MappingProxyType({"time_decay": 2.0, "time_first": 3.0})

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        D, A = config.width, config.attention_width
        self.time_decay = nn.Parameter(torch.zeros(A))
        self.time_first = nn.Parameter(torch.zeros(A))
        self.time_mix_k = vector(D)
        self.time_mix_v = vector(D)
        self.time_mix_r = vector(D)
        self.key = nn.Linear(D, A, bias=False)
        self.value = nn.Linear(D, A, bias=False)
        self.receptance = nn.Linear(D, A, bias=False)
        self.output = nn.Linear(A, D, bias=False)

    def forward(
        self,
        x: Tensor,
        state: TimeMixingState | None,
        v_first: Tensor | None,
        *,
        starts: Tensor | None = None,
        implementation: str | None = None,
    ) -> tuple[Tensor, TimeMixingState, Tensor | None]:
        """See ``TimeMixing.forward``."""
        shift, wkv = state if state is not None else (None, None)
        weights = (self.time_mix_k, self.time_mix_v, self.time_mix_r)
        x_k, x_v, x_r = token_shift(x, shift, weights, starts=starts, to_present=True)
        log_w = -torch.exp(full_precision(self.time_decay))
        y, wkv = wkv4(
            log_w,
            full_precision(self.time_first),
            self.key(x_k),
            self.value(x_v),
            wkv,
            starts=starts,
            implementation=implementation,
        )
        y = sigmoid_gate(y, self.receptance(x_r))
        return self.output(y), TimeMixingState(x[:, -1], wkv), v_first

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """RWKV-LM, ``RWKV-v4neo``."""
        D, A = self.config.width, self.config.attention_width
        rising, falling = self.depth.rising, self.depth.falling
        return {
            "time_decay": -5 + 8 * ramp(A, closed=True) ** (0.7 + 1.3 * rising),
            "time_first": math.log(0.3) + 0.5 * zigzag(A),
            "time_mix_k": ramp(D) ** falling,
            "time_mix_v": ramp(D) ** falling + 0.3 * rising,
            "time_mix_r": ramp(D) ** (0.5 * falling),
            "key.weight": torch.zeros(A, D),
            "value.weight": orthogonal((A, D), generator, by_shape=True),
            "receptance.weight": torch.zeros(A, D),
            "output.weight": torch.zeros(D, A),
        }
