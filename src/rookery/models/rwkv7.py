"""Time mixing of RWKV-7 "Goose" (arXiv 2503.14456).

r, k, v = W_r x_r, W_k x_k, W_v x_v                        of token-shifted inputs
log w   = -e^(-1/2) sigma(w0 + tanh(x_w w1) w2)            decay, above 0.545
a       = sigma(a0 + (x_a a1) a2)                          in-context learning rate
g       = sigma(x_g g1) g2                                 gate
kappa   = k k_k / |k k_k|  in each head                    the key to be removed
k       = k (1 + (a - 1) k_a)                              the key to be written
v       = v + (v_first - v) sigma(v0 + (x_v v1) v2)        above layer 0, whose values are v_first
y       = norm(wkv(r, w, k, v, -kappa, kappa a)) + (r . (k r_k)) v
o       = W_o (y * g)                                      with the recurrence of rookery.ops.wkv7
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from rookery.config import ModelConfig
from rookery.models.initial import orthogonal, ramp
from rookery.models.parts import HeadNorm, vector
from rookery.models.time_mixing import TimeMixing, TimeMixingState
from rookery.ops.fused import Mix7, multiply, rwkv7_inputs, shifted_products, wkv7_with_output

__all__ = ["TimeMixing7"]


class TimeMixing7(TimeMixing[ModelConfig]):
    """RWKV-7: the generalised delta rule; a key's old value is removed before the new one is written."""

    lr_scale: ClassVar[Mapping[str, float]] = MappingProxyType({"w0": 2.0})

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        D, A, H, K = config.width, config.attention_width, config.num_heads, config.head_size
        self.x_r = vector(D)
        self.x_w = vector(D)
        self.x_k = vector(D)
        self.x_v = vector(D)
        self.x_a = vector(D)
        self.x_g = vector(D)
        self.w0 = vector(A)
        self.w1 = nn.Parameter(torch.zeros(D, config.decay_rank))
        self.w2 = nn.Parameter(torch.zeros(config.decay_rank, A))
        self.a0 = vector(A)
        self.a1 = nn.Parameter(torch.zeros(D, config.iclr_rank))
        self.a2 = nn.Parameter(torch.zeros(config.iclr_rank, A))
        if layer > 0:
            self.v0 = vector(A)
            self.v1 = nn.Parameter(torch.zeros(D, config.value_rank))
            self.v2 = nn.Parameter(torch.zeros(config.value_rank, A))
        self.g1 = nn.Parameter(torch.zeros(D, config.gate_rank))
        self.g2 = nn.Parameter(torch.zeros(config.gate_rank, A))
        self.k_k = vector(A)
        self.k_a = vector(A)
        self.r_k = nn.Parameter(torch.zeros(H, K))
        self.receptance = nn.Linear(D, A, bias=False)
        self.key = nn.Linear(D, A, bias=False)
        self.value = nn.Linear(D, A, bias=False)
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
        H = self.config.num_heads
        low_rank = [(self.x_w, self.w1), (self.x_a, self.a1), (self.x_g, self.g1)]
        if v_first is not None:
            low_rank.append((self.x_v, self.v1))
        (x_r, x_k, x_v), (w, a, g, *share) = shifted_products(
            x, shift, (self.x_r, self.x_k, self.x_v), low_rank, starts=starts
        )
        r, k, v = self.receptance(x_r), self.key(x_k), self.value(x_v)
        w, a, g = multiply(w.tanh(), self.w2), multiply(a, self.a2), multiply(g.sigmoid(), self.g2)
        mix = None if v_first is None else Mix7(v_first, multiply(share[0], self.v2), self.v0)
        inputs = rwkv7_inputs(w, k, v, a, mix, w0=self.w0, a0=self.a0, k_k=self.k_k, k_a=self.k_a, heads=H)
        if v_first is None:
            v_first = inputs.v
        y, wkv = wkv7_with_output(
            r,
            *inputs,
            g,
            wkv,
            r_k=self.r_k,
            weight=self.ln_x.weight,
            bias=self.ln_x.bias,
            epsilon=self.ln_x.eps,
            starts=starts,
            implementation=implementation,
        )
        return self.output(y), TimeMixingState(x[:, -1], wkv), v_first

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """RWKV-LM, ``RWKV-v7/train_temp``."""
        D, A = self.config.width, self.config.attention_width
        H, K = self.config.num_heads, self.config.head_size
        rising, falling = self.depth.rising, self.depth.falling
        place = ramp(A, closed=True)
        centred = place - 0.5
        bent = 2 * ramp(K, closed=True) - 1 if K > 1 else torch.zeros(1)
        bent = (bent * bent.abs()).repeat(H)
        values = {
            "w0": -6 + 6 * place ** (1 + rising**0.3) + 0.5 + 2.5 * bent,
            "a0": -0.19 + 0.3 * bent + 0.4 * centred,
            "v0": 0.73 - 0.4 * centred,
            "k_k": 0.71 - 0.1 * centred,
            "k_a": torch.full((A,), 1.02),
            "r_k": torch.full((H, K), -0.04),
            "receptance.weight": orthogonal((A, D), generator),
            "key.weight": orthogonal((A, D), generator, gain=0.1),
            "value.weight": orthogonal((A, D), generator),
            "output.weight": torch.zeros(D, A),
            "ln_x.weight": torch.full((A,), self.depth.head_norm),
            "ln_x.bias": torch.zeros(A),
        }
        for name, power in {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}.items():
            values[f"x_{name}"] = 1 - ramp(D) ** (power * falling)
        config = self.config
        ranks = {"w": config.decay_rank, "a": config.iclr_rank, "v": config.value_rank, "g": config.gate_rank}
        for name, rank in ranks.items():
            values[f"{name}1"] = torch.zeros(D, rank)
            values[f"{name}2"] = orthogonal((rank, A), generator, gain=0.1, by_shape=True)
        own = dict(self.named_parameters())
        return {name: value for name, value in values.items() if name in own}
