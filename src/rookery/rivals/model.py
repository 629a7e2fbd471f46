"""A rival in the frame of every model: RWKV-7's blocks, with another mixing over time.

    logits, state = model(tokens, state)       tokens [B, T] -> logits [B, T, N]

A rival is a row of ``MIXINGS``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rookery.errors import StateError
from rookery.models.channel_mixing import ChannelMixing, ChannelMixing7
from rookery.models.sequence_model import Block, LayerState, SequenceModel
from rookery.rivals.aft import AFT
from rookery.rivals.aft_simple import AFTSimple
from rookery.rivals.attention import Attention
from rookery.rivals.config import RivalConfig, RivalName
from rookery.rivals.deltanet import DeltaNet
from rookery.rivals.gelu_mixing import GeluMixing
from rookery.rivals.gla import GLA
from rookery.rivals.lstm import LSTM
from rookery.rivals.mixing import ANY, RivalMixing
from rookery.rivals.rnn import RNN

__all__ = ["CHANNEL_MIXINGS", "MIXINGS", "Rival", "RivalState"]

MIXINGS: dict[RivalName, type[RivalMixing]] = {
    "attention": Attention,
    "rnn": RNN,
    "lstm": LSTM,
    "aft": AFT,
    "aft-simple": AFTSimple,
    "gla": GLA,
    "deltanet": DeltaNet,
}

CHANNEL_MIXINGS: dict[str, type[ChannelMixing]] = {"rwkv7": ChannelMixing7, "gelu": GeluMixing}

RivalState = tuple[LayerState, ...]
"""What each layer carries; the streams are axis 0 of every tensor in it."""


class Rival(SequenceModel[RivalConfig, RivalState]):
    """A language model of any mixing that is not RWKV's."""

    def __init__(self, config: RivalConfig):
        layers = range(config.num_layers)
        super().__init__(config, (_block(config, layer) for layer in layers), epsilon=config.norm_epsilon)

    def check_state(self, state: RivalState, streams: int) -> None:
        """See ``SequenceModel.check_state``."""
        name, L = self.config.mixer, self.config.num_layers
        if not isinstance(state, tuple) or not all(isinstance(layer, LayerState) for layer in state):
            raise StateError(f"expected a tuple of {L} LayerState, got {type(state).__name__}")
        if len(state) != L:
            raise StateError(f"the state is of {len(state)} layers, but this {name} model has {L}")
        for number, (layer, block) in enumerate(zip(state, self.blocks, strict=True)):
            assert isinstance(block, Block)
            assert isinstance(block.att, RivalMixing)
            shift = ((streams, self.config.width),) if self.config.channel_mixing == "rwkv7" else ()
            held = (layer.channel_shift,) if isinstance(layer.channel_shift, Tensor) else layer.channel_shift
            _check("time_mixing", layer.time_mixing, block.att.state_shapes(streams), number, name)
            _check("channel_shift", held, shift, number, name)

    def split_state(self, state: RivalState) -> RivalState:
        """See ``SequenceModel.split_state``."""
        return state

    def join_state(self, layers: list[LayerState]) -> RivalState:
        """See ``SequenceModel.join_state``."""
        # The last input is a view that would keep all inputs of the span.
        return tuple(
            layer._replace(channel_shift=layer.channel_shift.clone())
            if isinstance(layer.channel_shift, Tensor)
            else layer
            for layer in layers
        )


def _block(config: RivalConfig, layer: int) -> Block:
    return Block(
        config.width,
        MIXINGS[config.mixer](config, layer),
        CHANNEL_MIXINGS[config.channel_mixing](config, layer),
        normalise_input=layer == 0 and config.embedding_norm,
        parallel=config.parallel,
        epsilon=config.norm_epsilon,
    )


def _check(what: str, parts: Any, wanted: tuple[tuple[int, ...], ...], layer: int, mixer: str) -> None:
    """Check the shapes of one layer's tensors.

    Raises:
        StateError: they are others.
    """
    tensors = isinstance(parts, tuple) and all(isinstance(part, Tensor) for part in parts)
    got = tuple(tuple(part.shape) for part in parts) if tensors else type(parts).__name__
    fits = tensors and len(got) == len(wanted)
    fits = fits and all(
        len(g) == len(w) and all(n in (ANY, m) for m, n in zip(g, w, strict=True))
        for g, w in zip(got, wanted, strict=True)
    )
    if not fits:
        shown = str(wanted).replace(str(ANY), "any")
        raise StateError(
            f"layer {layer} of the state: {what} has shapes {got}, but this {mixer} model needs {shown}; "
            "is the state of another model or number of streams?"
        )
