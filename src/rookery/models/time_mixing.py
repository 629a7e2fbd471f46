"""What a block asks of its time mixing, whatever the architecture behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rookery.models.initial import Depth

__all__ = ["Sizes", "TimeMixing", "TimeMixingState"]


class Sizes(Protocol):
    """What the frame of a model asks of a configuration; ``ModelConfig`` has it."""

    @property
    def vocab_size(self) -> int:
        """N."""
        ...

    @property
    def width(self) -> int:
        """D."""
        ...

    @property
    def num_layers(self) -> int:
        """L."""
        ...

    @property
    def ffn_width(self) -> int:
        """F."""
        ...


Config = TypeVar("Config", bound=Sizes)


class TimeMixingState(NamedTuple):
    """What RWKV's time mixing carries, in one layer, from one call to the next."""

    shift: Tensor
    """[B, D]: its last input."""

    wkv: Tensor
    """[B, H, K, V] (RWKV-4: [B, 3, A]), float32: what the recurrence remembers."""


class TimeMixing(nn.Module, ABC, Generic[Config]):
    """Mixes over time: position t of the output depends on positions up to t of the input and on the state.

    A subclass registers its parameters under their official names, and reads them in ``forward`` alone, so
    that adapters, sharding and compilation can be put around it from outside.
    """

    lr_scale: ClassVar[Mapping[str, float]] = MappingProxyType({})
    """Learning rate of a parameter as a multiple of the model's, by name; 1 where a name is absent."""

    decayed: ClassVar[frozenset[str]] = frozenset()
    """Names of matrices that weight decay applies to, beside those that end in ``.weight``."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.config: Config = config
        self.depth = Depth(layer, config.num_layers)

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        state: Any,
        v_first: Any,
        *,
        starts: Tensor | None = None,
        implementation: str | None = None,
    ) -> tuple[Tensor, Any, Any]:
        """Mix one span of every stream.

        Args:
            x: [B, T, D], after the layer norm.
            state: what the last call returned; None at the start of a text.
            v_first: what the first layer passes up to the others (RWKV-7: its values [B, T, A]; attention:
                what follows from positions alone); None in the first layer, and in architectures that pass
                nothing.
            starts: [B, T] bool, the first token of each document.
            implementation: of the recurrence; by default the best one (see ``rookery.ops``).

        Returns:
            The output [B, T, D], the new state, and ``v_first`` for the next layer.
        """

    @abstractmethod
    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh float32 values of all its parameters, by name, as the published recipe has them."""
