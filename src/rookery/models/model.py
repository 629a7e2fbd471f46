"""The model: embedding, blocks of time mixing and channel mixing, head.

    logits, state = model(tokens, state)       tokens [B, T] -> logits [B, T, N]

A version of RWKV is a row of ``MIXINGS``; the blocks and the model know no versions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rookery.config import ModelConfig, Version
from rookery.errors import ConfigError, StateError
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
from rookery.models.time_mixing import TimeMixing, TimeMixingState
from rookery.state import State, check_state, initial_state

__all__ = ["MIXINGS", "RWKV", "Block", "LayerState"]

MIXINGS: dict[Version, tuple[type[TimeMixing], type[ChannelMixing]]] = {
    "4": (TimeMixing4, ChannelMixing4),
    "5.0": (TimeMixing50, ChannelMixing5),
    "5.1": (TimeMixing51, ChannelMixing5),
    "5.2": (TimeMixing52, ChannelMixing5),
    "6": (TimeMixing6, ChannelMixing6),
    "7": (TimeMixing7, ChannelMixing7),
}


class LayerState(NamedTuple):
    """What one block carries from one call to the next."""

    time_mixing: TimeMixingState
    """The state of the time mixing."""

    channel_shift: Tensor
    """[B, D]: the last input of the channel mixing."""


class Block(nn.Module):
    """One layer: ``x + att(ln1(x))``, then ``x + ffn(ln2(x))``. The first normalises the embedding too."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        time_mixing, channel_mixing = MIXINGS[config.version]
        self.ln0 = nn.LayerNorm(config.width) if layer == 0 else nn.Identity()
        self.ln1 = nn.LayerNorm(config.width)
        self.ln2 = nn.LayerNorm(config.width)
        self.att = time_mixing(config, layer)
        self.ffn = channel_mixing(config, layer)

    def forward(
        self,
        x: Tensor,
        state: LayerState | None = None,
        v_first: Tensor | None = None,
        *,
        starts: Tensor | None = None,
        implementation: str | None = None,
    ) -> tuple[Tensor, LayerState, Tensor | None]:
        """Run one layer over one span of every stream.

        Args:
            x: [B, T, D].
            state: what the last call returned; None at the start of a text.
            v_first: what the first block passes up to all others; see ``TimeMixing.forward``.
            starts: [B, T] bool, the first token of each document.
            implementation: of the recurrence; by default the best one.

        Returns:
            [B, T, D], the new state, and ``v_first`` for the next block.
        """
        time_mixing, channel_shift = state if state is not None else (None, None)
        x = self.ln0(x)
        y, time_mixing, v_first = self.att(
            self.ln1(x), time_mixing, v_first, starts=starts, implementation=implementation
        )
        x = x + y
        y, channel_shift = self.ffn(self.ln2(x), channel_shift, starts=starts)
        return x + y, LayerState(time_mixing, channel_shift), v_first


class RWKV(nn.Module):
    """An RWKV language model of any version.

    Parameters have the names and shapes of official checkpoints, so that ``state_dict`` is one. They hold no
    useful values until ``init_weights`` or ``from_checkpoint`` sets them.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.emb = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.ln_out = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)

    def forward(
        self,
        tokens: Tensor,
        state: State[Tensor] | None = None,
        *,
        starts: Tensor | None = None,
        implementation: str | None = None,
        last_only: bool = False,
    ) -> tuple[Tensor, State[Tensor]]:
        """Read tokens, predict the next one after each. One token is decoding, more are training or prefill.

        Args:
            tokens: [B, T] ids, int64 (or int32).
            state: of B streams, as the last call returned it, never written into; None at the start.
            starts: [B, T] bool, the first token of each document where several are packed in a row: at these
                tokens the state starts anew.
            implementation: of the recurrence, by name; by default the best one (see ``rookery.ops``).
            last_only: compute the logits of the last position alone.

        Returns:
            logits [B, T, N] (or [B, 1, N]) in the dtype of the weights (under autocast, in its dtype), and
            the state after the last token: shifts in the dtype of the activations, ``wkv`` in float32.

        Raises:
            ConfigError: tokens or starts of a wrong shape or dtype, no tokens, or an id outside of the
                vocabulary (checked on the CPU; elsewhere the check would wait for the device).
            StateError: the state is of another model or number of streams.
        """
        self._check(tokens, state, starts)
        states = [None] * self.config.num_layers if state is None else _split(state)
        x, v_first = self.emb(tokens), None
        after = []
        for block, before in zip(self.blocks, states, strict=True):
            x, layer_state, v_first = block(x, before, v_first, starts=starts, implementation=implementation)
            after.append(layer_state)
        if last_only:
            x = x[:, -1:]
        return self.head(self.ln_out(x)), _join(after)

    def initial_state(self, batch: int = 1, device: torch.device | str | None = None) -> State[Tensor]:
        """The state of ``batch`` streams before their first token; ``forward`` takes it for ``None``.

        Args:
            device: by default where the model is.
        """
        weight = self.emb.weight
        shifts, channel_shifts, wkv = (torch.from_numpy(part) for part in initial_state(self.config, batch))
        device = weight.device if device is None else device
        return State(shifts.to(device, weight.dtype), channel_shifts.to(device, weight.dtype), wkv.to(device))

    def _check(self, tokens: Tensor, state: State[Tensor] | None, starts: Tensor | None) -> None:
        if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32):
            raise ConfigError(
                f"tokens must be integers of shape [B, T], not {tokens.dtype} of shape {tuple(tokens.shape)}"
            )
        if tokens.numel() == 0:
            raise ConfigError(f"there must be at least one token; tokens has shape {tuple(tokens.shape)}")
        if starts is not None and (starts.dtype != torch.bool or starts.shape != tokens.shape):
            raise ConfigError(
                f"starts must be bool of the tokens' shape {tuple(tokens.shape)}, "
                f"not {starts.dtype} of shape {tuple(starts.shape)}"
            )
        # Elsewhere than on the CPU, looking at the values would wait for the device at every call.
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (int(bound) for bound in tokens.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                raise ConfigError(
                    f"token {low if low < 0 else high} is outside of the vocabulary of "
                    f"{self.config.vocab_size}; was the text encoded by another model's tokenizer?"
                )
        if state is not None:
            check_state(state, self.config, tokens.shape[0])
            if not all(isinstance(part, Tensor) for part in state):
                raise StateError("the state holds numpy arrays; a torch model needs tensors")


def _split(state: State[Tensor]) -> list[LayerState]:
    return [
        LayerState(TimeMixingState(shift, wkv), channel_shift)
        for shift, channel_shift, wkv in zip(*(part.unbind() for part in state), strict=True)
    ]


def _join(layers: list[LayerState]) -> State[Tensor]:
    return State(
        torch.stack([layer.time_mixing.shift for layer in layers]),
        torch.stack([layer.channel_shift for layer in layers]),
        torch.stack([layer.time_mixing.wkv for layer in layers]),
    )
