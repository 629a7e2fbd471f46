"""RWKV of any version, in the frame of every model.

    logits, state = model(tokens, state)       tokens [B, T] -> logits [B, T, N]

A version of RWKV is a row of ``MIXINGS``; the blocks and the model know no versions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rookery.config import ModelConfig, Version
from rookery.errors import StateError
from rookery.models.channel_mixing import (
    ChannelMixing,
    ChannelMixing4,
    ChannelMixing5,
    ChannelMixing6,
    ChannelMixing7,
)
from rookery.models.rwkv4 import TimeMixing4
from rookery.models.rwkv5 import TimeMixing50, TimeMixing51, TimeMixing52
from rookery.models.rwkv6 import TimeMixing6
from rookery.models.rwkv7 import TimeMixing7
from rookery.models.sequence_model import Block, LayerState, SequenceModel
from rookery.models.time_mixing import TimeMixing, TimeMixingState
from rookery.state import State, check_state, initial_state

__all__ = ["MIXINGS", "RWKV"]

MIXINGS: dict[Version, tuple[type[TimeMixing[ModelConfig]], type[ChannelMixing]]] = {
    "4": (TimeMixing4, ChannelMixing4),
    "5.0": (TimeMixing50, ChannelMixing5),
    "5.1": (TimeMixing51, ChannelMixing5),
    "5.2": (TimeMixing52, ChannelMixing5),
    "6": (TimeMixing6, ChannelMixing6),
    "7": (TimeMixing7, ChannelMixing7),
}


class RWKV(SequenceModel[ModelConfig, State[Tensor]]):
    """An RWKV language model of any version.

    Parameters have the names and shapes of official checkpoints, so that ``state_dict`` is one. They hold no
    useful values until ``init_weights`` or ``from_checkpoint`` sets them. Its state is a ``State``, in which
    the layers' states lie together.
    """

    def __init__(self, config: ModelConfig):
        time_mixing, channel_mixing = MIXINGS[config.version]
        layers = range(config.num_layers)
        super().__init__(
            config,
            (
                Block(
                    config.width,
                    time_mixing(config, layer),
                    channel_mixing(config, layer),
                    normalise_input=layer == 0,
                )
                for layer in layers
            ),
        )

    def initial_state(self, batch: int = 1, device: torch.device | str | None = None) -> State[Tensor]:
        """The state of ``batch`` streams before their first token; ``forward`` takes it for ``None``.

        Args:
            device: by default where the model is.
        """
        weight = self.ln_out.weight
        shifts, channel_shifts, wkv = (torch.from_numpy(part) for part in initial_state(self.config, batch))
        device = weight.device if device is None else device
        return State(shifts.to(device, weight.dtype), channel_shifts.to(device, weight.dtype), wkv.to(device))

    def check_state(self, state: State[Any], streams: int) -> None:
        """See ``SequenceModel.check_state``."""
        check_state(state, self.config, streams)
        if not all(isinstance(part, Tensor) for part in state):
            raise StateError("the state holds numpy arrays; a torch model needs tensors")

    def split_state(self, state: State[Tensor]) -> list[LayerState]:
        """See ``SequenceModel.split_state``."""
        return [
            LayerState(TimeMixingState(shift, wkv), channel_shift)
            for shift, channel_shift, wkv in zip(*(part.unbind() for part in state), strict=True)
        ]

    def join_state(self, layers: list[LayerState]) -> State[Tensor]:
        """See ``SequenceModel.join_state``."""
        return State(
            torch.stack([layer.time_mixing.shift for layer in layers]),
            torch.stack([layer.channel_shift for layer in layers]),
            torch.stack([layer.time_mixing.wkv for layer in layers]),
        )
