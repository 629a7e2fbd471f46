"""The table of mixers, and models of any of them at equal numbers of parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from rookery.config import ModelConfig, Version, sized
from rookery.errors import ConfigError
from rookery.models import RWKV, init_weights
from rookery.models.sequence_model import SequenceModel
from rookery.rivals.config import RivalConfig, RivalName
from rookery.rivals.model import Rival

__all__ = ["MIXERS", "Mixer", "build", "empty", "sizes_for"]

_TOLERANCE = 0.02

# Widths that are whole numbers of vector registers of a CPU.
_STEP = 16


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """One way to mix over time."""

    name: str
    """Its key in ``MIXERS``."""

    title: str
    """What plots and tables call it."""

    summary: str
    """What it does, in one line."""

    source: str
    """Where it was published."""

    grows: bool = False
    """Whether its state grows with the text."""

    config: Callable[..., ModelConfig | RivalConfig]
    """Makes a configuration of vocab_size, width, num_layers, ffn_width (or None) and its own options."""

    @property
    def is_rwkv(self) -> bool:
        """Whether it is a version of RWKV."""
        return self.name.startswith("rwkv")


def _rwkv(version: Version) -> Callable[..., ModelConfig]:
    return partial(sized, version)


def _rival(name: RivalName, **defaults: Callable[[int], int]) -> Callable[..., RivalConfig]:
    """A configuration whose options follow from the width where they are not given."""

    def config(
        *, vocab_size: int, width: int, num_layers: int, ffn_width: int | None = None, **options: Any
    ) -> RivalConfig:
        if not isinstance(width, int) or width < 1:
            raise ConfigError(f"width must be a positive integer, not {width!r}")
        for option, default in defaults.items():
            if options.get(option) is None:
                options[option] = default(width)
        if name == "attention" and options.get("rotary_size") is None:
            options["rotary_size"] = options["head_size"] // 2 * 2
        try:
            return RivalConfig(
                mixer=name,
                vocab_size=vocab_size,
                width=width,
                num_layers=num_layers,
                ffn_width=4 * width if ffn_width is None else ffn_width,
                **options,
            )
        except TypeError as error:
            raise ConfigError(f"{name} has no such option: {error}") from error

    return config


def _context(width: int) -> int:
    return 1024


def _position_rank(width: int) -> int:
    """With a context of 1024 and at width 128, half as many numbers as in AFT's four matrices."""
    return 16


def _at_most_64(width: int) -> int:
    """RWKV's."""
    return min(64, width)


def _quarter_at_most_64(width: int) -> int:
    """Four heads and more, as small GPTs have them."""
    return min(64, width // 4 or width)


_ROWS = (
    Mixer(
        name="rwkv4",
        title="RWKV-4",
        summary="an average of values weighted by keys and a learned decay of each channel",
        source="arXiv 2305.13048",
        config=_rwkv("4"),
    ),
    Mixer(
        name="rwkv5",
        title="RWKV-5.2",
        summary="heads with matrices as states, and a learned decay of each channel",
        source="arXiv 2404.05892",
        config=_rwkv("5.2"),
    ),
    Mixer(
        name="rwkv6",
        title="RWKV-6",
        summary="RWKV-5 whose token shift and decay depend on the data",
        source="arXiv 2404.05892",
        config=_rwkv("6"),
    ),
    Mixer(
        name="rwkv7",
        title="RWKV-7",
        summary="a generalised delta rule: a key's old value is removed before the new one is written",
        source="arXiv 2503.14456",
        config=_rwkv("7"),
    ),
    Mixer(
        name="attention",
        title="Attention",
        summary="softmax over all tokens so far, with rotary positions",
        source="arXiv 1706.03762, arXiv 2104.09864",
        grows=True,
        config=_rival("attention", head_size=_quarter_at_most_64),
    ),
    Mixer(
        name="rnn",
        title="RNN",
        summary="a vector as state, through a matrix and tanh at each token",
        source="Elman 1990",
        config=_rival("rnn"),
    ),
    Mixer(
        name="lstm",
        title="LSTM",
        summary="a vector as state behind gates that forget, write and show",
        source="Hochreiter and Schmidhuber 1997",
        config=_rival("lstm"),
    ),
    Mixer(
        name="aft",
        title="AFT",
        summary="an average of values weighted by keys and learned biases of pairs of positions",
        source="arXiv 2105.14103",
        grows=True,
        config=_rival("aft", context=_context, position_rank=_position_rank),
    ),
    Mixer(
        name="aft-simple",
        title="AFT-simple",
        summary="an average of values weighted by keys alone",
        source="arXiv 2105.14103",
        config=_rival("aft-simple"),
    ),
    Mixer(
        name="gla",
        title="GLA",
        summary="linear attention with matrices as states, which decay by as much as the data wants",
        source="arXiv 2312.06635",
        config=_rival("gla", head_size=_at_most_64),
    ),
    Mixer(
        name="deltanet",
        title="DeltaNet",
        summary="linear attention that replaces what its state holds under a key",
        source="arXiv 2406.06484",
        config=_rival("deltanet", head_size=_at_most_64),
    ),
)

MIXERS: dict[str, Mixer] = {row.name: row for row in _ROWS}
"""Every mixer by its name."""


def empty(config: ModelConfig | RivalConfig) -> SequenceModel[Any, Any]:
    """The model of a configuration, whose parameters hold no useful values yet."""
    return RWKV(config) if isinstance(config, ModelConfig) else Rival(config)


def build(config: ModelConfig | RivalConfig, *, seed: int = 0) -> SequenceModel[Any, Any]:
    """The model of a configuration, initialised: ``logits, state = model(tokens, state)``.

    Args:
        config: as ``sizes_for`` makes it.
        seed: of the initial values; one seed gives one model.
    """
    model = empty(config)
    init_weights(model, seed=seed)
    return model


def sizes_for(
    name: str,
    *,
    vocab_size: int,
    width: int,
    num_layers: int,
    parameters: int | None = None,
    **options: Any,
) -> ModelConfig | RivalConfig:
    """A configuration of a mixer with about so many parameters.

    The channel mixing's inner width is what gives way: all else follows from the width, and so mixers with
    more parameters of their own have narrower channel mixing.

    Args:
        name: a key of ``MIXERS``.
        vocab_size: N.
        width: D.
        num_layers: L.
        parameters: how many in all, met within 2 %; None for the mixer's usual inner width.
        options: what the mixer's configuration takes beside: ``head_size``; for "aft" ``context`` and
            ``position_rank``; for RWKV the ranks.

    Raises:
        ConfigError: there is no such mixer, the sizes do not fit together, or no inner width gives so many
            parameters.
    """
    if name not in MIXERS:
        raise ConfigError(f"there is no mixer {name!r}; there are {', '.join(MIXERS)}")
    config = MIXERS[name].config(vocab_size=vocab_size, width=width, num_layers=num_layers, **options)
    if parameters is None:
        return config
    least, more = (_count(replace(config, ffn_width=inner)) for inner in (1, 2))
    # Each channel of the inner width has the same number of parameters.
    exact = 1 + (parameters - least) / (more - least)
    for inner in (round(exact / _STEP) * _STEP, round(exact)):
        chosen = replace(config, ffn_width=max(inner, 1))
        if abs(_count(chosen) - parameters) <= _TOLERANCE * parameters:
            return chosen
    raise ConfigError(
        f"{name} with width {width}, {num_layers} layers and {vocab_size} tokens has at least {least:,} "
        f"parameters, in steps of {more - least:,}: none within 2 % of {parameters:,}; "
        "take more parameters, or a smaller width"
    )


def _count(config: ModelConfig | RivalConfig) -> int:
    with torch.device("meta"):
        return empty(config).num_parameters
