"""Time mixing of RWKV-6 "Finch" (arXiv 2404.05892).

m_i        = tanh((x + s maa_x) w1)_i w2_i           s = previous x - x;  i = w, k, v, r, g
x_i        = x + s (maa_i + m_i)                     token shift by as much as the data wants
log w      = -exp(time_decay + tanh(x_w dw1) dw2)    so does the decay
r, k, v, g = W_r x_r, W_k x_k, W_v x_v, W_g x_g
o          = W_o (norm(wkv(r, w, k, v)) * silu(g))   with the recurrence of rookery.ops.wkv6
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from rookery.config import ModelConfig
from rookery.models.initial import orthogonal, ramp, uniform, zigzag
from rookery.models.parts import HeadNorm, low_rank, multiply, vector
from rookery.models.time_mixing import TimeMixing, TimeMixingState
from rookery.ops import wkv6
from rookery.ops.fused import rwkv6_decay, token_shift
from rookery.ops.tensors import full_precision

__all__ = ["TimeMixing6"]

# Inputs whose shift depends on the data; time_maa_w1 and time_maa_w2 hold them in the order w, k, v, r, g.
_MIXED = 5


class TimeMixing6(TimeMixing[ModelConfig]):
    """RWKV-6: RWKV-5.2 whose token shift and decay depend on the data."""

    lr_scale: ClassVar[Mapping[str, float]] = MappingProxyType({"time_decay": 2.0})

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        D, A, H, K = config.width, config.attention_width, config.num_heads, config.head_size
        self.time_maa_x = vector(D)
        self.time_maa_w = vector(D)
        self.time_maa_k = vector(D)
        self.time_maa_v = vector(D)
        self.time_maa_r = vector(D)
        self.time_maa_g = vector(D)
        self.time_maa_w1 = nn.Parameter(torch.zeros(D, _MIXED * config.mix_rank))
        self.time_maa_w2 = nn.Parameter(torch.zeros(_MIXED, config.mix_rank, D))
        self.time_decay = vector(A)
        self.time_decay_w1 = nn.Parameter(torch.zeros(D, config.decay_rank))
        self.time_decay_w2 = nn.Parameter(torch.zeros(config.decay_rank, A))
        self.time_faaaa = nn.Parameter(torch.zeros(H, K))
        self.receptance = nn.Linear(D, A, bias=False)
        self.key = nn.Linear(D, A, bias=False)
        self.value = nn.Linear(D, A, bias=False)
        self.gate = nn.Linear(D, A, bias=False)
        self.output = nn.Linear(A, D, bias=False)
        self.ln_x = HeadNorm(A)

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
        x_w, x_k, x_v, x_r, x_g = self.shifted(x, shift, starts)
        heads = (*x.shape[:2], self.config.num_heads, self.config.head_size)
        moved = low_rank(x_w, self.time_decay_w1, self.time_decay_w2, torch.tanh)
        log_w = rwkv6_decay(moved, self.time_decay, heads=self.config.num_heads)
        y, wkv = wkv6(
            self.receptance(x_r).view(heads),
            log_w.view(heads),
            self.key(x_k).view(heads),
            self.value(x_v).view(heads),
            full_precision(self.time_faaaa),
            wkv,
            starts=starts,
            implementation=implementation,
        )
        y = self.ln_x(y, self.gate(x_g))
        return self.output(y), TimeMixingState(x[:, -1], wkv), v_first

    def shifted(self, x: Tensor, shift: Tensor | None, starts: Tensor | None) -> list[Tensor]:
        """The inputs of decay, key, value, receptance and gate, each [B, T, D]."""
        B, T, D = x.shape
        (hint,) = token_shift(x, shift, (self.time_maa_x,), starts=starts)
        hidden = torch.tanh(multiply(hint, self.time_maa_w1)).view(B * T, _MIXED, -1).transpose(0, 1)
        fixed = (self.time_maa_w, self.time_maa_k, self.time_maa_v, self.time_maa_r, self.time_maa_g)
        weights = torch.baddbmm(torch.cat(fixed).view(_MIXED, 1, D), hidden, self.time_maa_w2)
        return token_shift(x, shift, weights.view(_MIXED, B, T, D), starts=starts)

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """RWKV-LM, ``RWKV-v5``."""
        D, A = self.config.width, self.config.attention_width
        rising, falling = self.depth.rising, self.depth.falling
        place = ramp(A, closed=True)
        return {
            "time_maa_x": 1 - ramp(D) ** falling,
            "time_maa_w": 1 - ramp(D) ** falling,
            "time_maa_k": 1 - ramp(D) ** falling,
            "time_maa_v": 1 - ramp(D) ** falling - 0.3 * rising,
            "time_maa_r": 1 - ramp(D) ** (0.5 * falling),
            "time_maa_g": 1 - ramp(D) ** (0.5 * falling),
            "time_maa_w1": torch.zeros(self.time_maa_w1.shape),
            "time_maa_w2": uniform(self.time_maa_w2.shape, generator, bound=0.01),
            "time_decay": -6 + 5 * place ** (0.7 + 1.3 * rising),
            "time_decay_w1": torch.zeros(self.time_decay_w1.shape),
            "time_decay_w2": uniform(self.time_decay_w2.shape, generator, bound=0.01),
            "time_faaaa": rising * (1 - place) + 0.1 * zigzag(A),
            "receptance.weight": orthogonal((A, D), generator),
            "key.weight": orthogonal((A, D), generator, gain=0.1),
            "value.weight": orthogonal((A, D), generator),
            "gate.weight": orthogonal((A, D), generator, gain=0.1),
            "output.weight": torch.zeros(D, A),
            "ln_x.weight": torch.full((A,), self.depth.head_norm),
            "ln_x.bias": torch.zeros(A),
        }
