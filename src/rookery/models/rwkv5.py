"""Time mixing of RWKV-5 "Eagle" in its three variants (arXiv 2404.05892).

r, k, v, g = W_r x_r, W_k x_k, W_v x_v, W_g x_g      of token-shifted inputs
o          = W_o (norm(wkv(r, k, v)) * silu(g))      with the recurrence of rookery.ops.wkv5

5.0   no gate; one decay and one bonus for a head
5.1   gate; one decay and one bonus for a head
5.2   gate; one decay and one bonus for a key channel: the published "Eagle"
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from rookery.config import ModelConfig
from rookery.models.initial import orthogonal, ramp, zigzag
from rookery.models.parts import HEAD_NORM_EPSILON, HeadNorm, vector
from rookery.models.time_mixing import TimeMixing, TimeMixingState
from rookery.ops import wkv5
from rookery.ops.fused import token_shift
from rookery.ops.tensors import full_precision

__all__ = ["TimeMixing50", "TimeMixing51", "TimeMixing52"]


class _TimeMixing5(TimeMixing[ModelConfig]):
    """What the variants share: heads with a matrix for a state."""

    head_norm_epsilon: ClassVar[float] = HEAD_NORM_EPSILON

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        D, A = config.width, config.attention_width
        self.time_mix_k = vector(D)
        self.time_mix_v = vector(D)
        self.time_mix_r = vector(D)
        self.receptance = nn.Linear(D, A, bias=False)
        self.key = nn.Linear(D, A, bias=False)
        self.value = nn.Linear(D, A, bias=False)
        self.output = nn.Linear(A, D, bias=False)
        self.ln_x = HeadNorm(A, eps=self.head_norm_epsilon)

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
        x_k, x_v, x_r, *x_gate = token_shift(x, shift, self.shift_weights(), starts=starts, to_present=True)
        heads = (*x.shape[:2], self.config.num_heads, self.config.head_size)
        y, wkv = wkv5(
            self.receptance(x_r).view(heads),
            self.log_decay(),
            self.key(x_k).view(heads),
            self.value(x_v).view(heads),
            self.bonus(),
            wkv,
            starts=starts,
            implementation=implementation,
        )
        y = self.ln_x(y, self.gate_of(*x_gate))
        return self.output(y), TimeMixingState(x[:, -1], wkv), v_first

    @abstractmethod
    def log_decay(self) -> Tensor:
        """[H, K]: the logarithm of the decay, in full precision."""

    @abstractmethod
    def bonus(self) -> Tensor:
        """[H, K]: the weight of the present token, in full precision."""

    def shift_weights(self) -> list[Tensor]:
        """The weights of the token shifts of key, value, receptance, and where there is one the gate."""
        return [self.time_mix_k, self.time_mix_v, self.time_mix_r]

    def gate_of(self, *x_gate: Tensor) -> Tensor | None:
        """The gate [B, T, A] before its activation, made of its shifted input; None where there is none."""
        return None

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """RWKV-LM, ``RWKV-v5``."""
        D, A = self.config.width, self.config.attention_width
        rising, falling = self.depth.rising, self.depth.falling
        return {
            "time_mix_k": ramp(D) ** falling,
            "time_mix_v": ramp(D) ** falling + 0.3 * rising,
            "time_mix_r": ramp(D) ** (0.5 * falling),
            "receptance.weight": orthogonal((A, D), generator),
            "key.weight": orthogonal((A, D), generator, gain=0.1),
            "value.weight": orthogonal((A, D), generator),
            "output.weight": torch.zeros(D, A),
            "ln_x.weight": torch.full((A,), self.depth.head_norm),
            "ln_x.bias": torch.zeros(A),
        }


class _DecayOfHead(_TimeMixing5):
    """One decay and one bonus, kept as its logarithm, for a head."""

    lr_scale: ClassVar[Mapping[str, float]] = MappingProxyType({"time_decay": 2.0, "time_first": 3.0})

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        self.time_decay = nn.Parameter(torch.zeros(config.num_heads))
        self.time_first = nn.Parameter(torch.zeros(config.num_heads))

    def log_decay(self) -> Tensor:
        log_w = -torch.exp(full_precision(self.time_decay))
        return log_w[:, None].expand(-1, self.config.head_size)

    def bonus(self) -> Tensor:
        return torch.exp(full_precision(self.time_first))[:, None].expand(-1, self.config.head_size)

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        H, rising = self.config.num_heads, self.depth.rising
        return super().initial_values(generator) | {
            "time_decay": -6 + 5 * ramp(H, closed=True) ** (0.7 + 1.3 * rising),
            "time_first": torch.full((H,), -3.0),
        }


class _DecayOfChannel(_TimeMixing5):
    """One decay and one bonus for a key channel."""

    lr_scale: ClassVar[Mapping[str, float]] = MappingProxyType({"time_decay": 2.0})

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        self.time_decay = nn.Parameter(torch.zeros(config.num_heads, config.head_size))
        self.time_faaaa = nn.Parameter(torch.zeros(config.num_heads, config.head_size))

    def log_decay(self) -> Tensor:
        return -torch.exp(full_precision(self.time_decay))

    def bonus(self) -> Tensor:
        return full_precision(self.time_faaaa)

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        A, rising = self.config.attention_width, self.depth.rising
        place = ramp(A, closed=True)
        return super().initial_values(generator) | {
            "time_decay": -6 + 5 * place ** (0.7 + 1.3 * rising),
            "time_faaaa": rising * (1 - place) + 0.1 * zigzag(A),
        }


class _Gate(_TimeMixing5):
    """A gate on the output."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        self.time_mix_g = vector(config.width)
        self.gate = nn.Linear(config.width, config.attention_width, bias=False)

    def shift_weights(self) -> list[Tensor]:
        return [*super().shift_weights(), self.time_mix_g]

    def gate_of(self, *x_gate: Tensor) -> Tensor:
        (x_g,) = x_gate
        return self.gate(x_g)

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        return super().initial_values(generator) | {
            "time_mix_g": ramp(self.config.width) ** (0.5 * self.depth.falling),
            "gate.weight": orthogonal(self.gate.weight.shape, generator, gain=0.1),
        }


class TimeMixing50(_DecayOfHead):
    """RWKV-5.0, trained before the outputs of heads were divided by 8 on their way into ``ln_x``."""

    head_norm_epsilon: ClassVar[float] = 1e-5


class TimeMixing51(_Gate, _DecayOfHead):
    """RWKV-5.1."""


class TimeMixing52(_Gate, _DecayOfChannel):
    """RWKV-5.2."""
