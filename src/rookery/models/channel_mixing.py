"""Channel mixing of all versions: a squared-ReLU network on the shifted input, gated until RWKV-6.

    RWKV-4, 5, 6   o = sigma(W_r x_r) * (W_v relu(W_k x_k)^2)      (arXiv 2305.13048, eq. 18)
    RWKV-7         o = W_v relu(W_k x_k)^2                         (arXiv 2503.14456)

x_r and x_k are token shifts of the input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from rookery.models.initial import Depth, orthogonal, ramp
from rookery.models.parts import vector
from rookery.models.time_mixing import Sizes
from rookery.ops.fused import sigmoid_gate, squared_relu, token_shift

__all__ = ["ChannelMixing", "ChannelMixing4", "ChannelMixing5", "ChannelMixing6", "ChannelMixing7"]


class ChannelMixing(nn.Module, ABC):
    """[B, T, D] -> [B, T, D] through the inner width F, whatever the architecture."""

    def __init__(self, config: Sizes, layer: int):
        super().__init__()
        self.depth = Depth(layer, config.num_layers)

    @abstractmethod
    def forward(self, x: Tensor, shift: Any, *, starts: Tensor | None = None) -> tuple[Tensor, Any]:
        """Mix the channels of one span of every stream.

        Args:
            x: [B, T, D], after the layer norm.
            shift: what the last call returned, [B, D] or an empty tuple; None at the start of a text.
            starts: [B, T] bool, the first token of each document.

        Returns:
            The output [B, T, D], and what the next call needs: the last input [B, D], or an empty tuple.
        """

    @abstractmethod
    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh float32 values of all its parameters, by name, as the published recipe has them."""


class SquaredReluMixing(ChannelMixing):
    """RWKV's; a version says how it shifts and gates."""

    def __init__(self, config: Sizes, layer: int):
        super().__init__(config, layer)
        self.key = nn.Linear(config.width, config.ffn_width, bias=False)
        self.value = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(
        self, x: Tensor, shift: Tensor | None, *, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See ``ChannelMixing.forward``."""
        return self.mix(x, shift, starts), x[:, -1]

    @abstractmethod
    def mix(self, x: Tensor, shift: Tensor | None, starts: Tensor | None) -> Tensor:
        """The output [B, T, D] of ``forward``."""

    def expand(self, x_k: Tensor) -> Tensor:
        """``W_v relu(W_k x_k)^2``."""
        return self.value(squared_relu(self.key(x_k)))


class ChannelMixing4(SquaredReluMixing):
    """RWKV-4: the mixing weights are those of the present input."""

    def __init__(self, config: Sizes, layer: int):
        super().__init__(config, layer)
        self.time_mix_k = vector(config.width)
        self.time_mix_r = vector(config.width)
        self.receptance = nn.Linear(config.width, config.width, bias=False)

    def mix(self, x: Tensor, shift: Tensor | None, starts: Tensor | None) -> Tensor:
        """Gated squared ReLU of the shifted input."""
        weights = (self.time_mix_k, self.time_mix_r)
        x_k, x_r = token_shift(x, shift, weights, starts=starts, to_present=True)
        return sigmoid_gate(self.expand(x_k), self.receptance(x_r))

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """RWKV-LM, ``RWKV-v4neo``."""
        mix = ramp(self.time_mix_k.numel()) ** self.depth.falling
        return {
            "time_mix_k": mix,
            "time_mix_r": mix,
            "key.weight": orthogonal(self.key.weight.shape, generator, by_shape=True),
            "receptance.weight": torch.zeros(self.receptance.weight.shape),
            "value.weight": torch.zeros(self.value.weight.shape),
        }


class ChannelMixing5(ChannelMixing4):
    """RWKV-5: as RWKV-4, from other initial values."""

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """RWKV-LM, ``RWKV-v5``."""
        values = super().initial_values(generator)
        return values | {"key.weight": orthogonal(self.key.weight.shape, generator)}


class ChannelMixing6(SquaredReluMixing):
    """RWKV-6: the mixing weights are those of the previous input."""

    def __init__(self, config: Sizes, layer: int):
        super().__init__(config, layer)
        self.time_maa_k = vector(config.width)
        self.time_maa_r = vector(config.width)
        self.receptance = nn.Linear(config.width, config.width, bias=False)

    def mix(self, x: Tensor, shift: Tensor | None, starts: Tensor | None) -> Tensor:
        """Gated squared ReLU of the shifted input."""
        x_k, x_r = token_shift(x, shift, (self.time_maa_k, self.time_maa_r), starts=starts)
        return sigmoid_gate(self.expand(x_k), self.receptance(x_r))

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """RWKV-LM, ``RWKV-v5``."""
        mix = 1 - ramp(self.time_maa_k.numel()) ** self.depth.falling
        return {
            "time_maa_k": mix,
            "time_maa_r": mix,
            "key.weight": orthogonal(self.key.weight.shape, generator),
            "receptance.weight": torch.zeros(self.receptance.weight.shape),
            "value.weight": torch.zeros(self.value.weight.shape),
        }


class ChannelMixing7(SquaredReluMixing):
    """RWKV-7: no receptance."""

    def __init__(self, config: Sizes, layer: int):
        super().__init__(config, layer)
        self.x_k = vector(config.width)

    def mix(self, x: Tensor, shift: Tensor | None, starts: Tensor | None) -> Tensor:
        """Squared ReLU of the shifted input."""
        (x_k,) = token_shift(x, shift, (self.x_k,), starts=starts)
        return self.expand(x_k)

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """RWKV-LM, ``RWKV-v7/train_temp``."""
        return {
            "x_k": 1 - ramp(self.x_k.numel()) ** (self.depth.falling**4),
            "key.weight": orthogonal(self.key.weight.shape, generator),
            "value.weight": torch.zeros(self.value.weight.shape),
        }
