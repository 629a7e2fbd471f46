"""Channel mixing of GPT-NeoX: o = W_2 gelu(W_1 x + b_1) + b_2, which looks at the present token alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rookery.models.channel_mixing import ChannelMixing
from rookery.models.initial import orthogonal
from rookery.models.time_mixing import Sizes

__all__ = ["GeluMixing"]


class GeluMixing(ChannelMixing):
    """Two matrices with biases; carries nothing from call to call."""

    def __init__(self, config: Sizes, layer: int):
        super().__init__(config, layer)
        self.key = nn.Linear(config.width, config.ffn_width)
        self.value = nn.Linear(config.ffn_width, config.width)

    def forward(
        self, x: Tensor, shift: tuple[()] | None, *, starts: Tensor | None = None
    ) -> tuple[Tensor, tuple[()]]:
        """See ``ChannelMixing.forward``."""
        return self.value(F.gelu(self.key(x))), ()

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Orthogonal, and zeros before the residual sum."""
        return {
            "key.weight": orthogonal(self.key.weight.shape, generator),
            "key.bias": torch.zeros(self.key.bias.shape),
            "value.weight": torch.zeros(self.value.weight.shape),
            "value.bias": torch.zeros(self.value.bias.shape),
        }
