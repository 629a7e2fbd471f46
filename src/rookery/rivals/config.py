"""The shape of a rival model: one configuration for every mixing, of which each reads what it knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from rookery.errors import ConfigError

__all__ = ["RivalConfig", "RivalName"]

RivalName = Literal["attention", "rnn", "lstm", "aft", "aft-simple", "gla", "deltanet"]
_NAMES: tuple[RivalName, ...] = get_args(RivalName)

_HEADS = ("attention", "gla", "deltanet")


@dataclass(frozen=True, kw_only=True)
class RivalConfig:
    """The shape of one rival model. The letters are those of ``rookery.config``."""

    mixer: RivalName
    """What mixes over time: "attention", "rnn", "lstm", "aft", "aft-simple", "gla" or "deltanet"."""

    vocab_size: int
    """Rows of the embedding and of the head, N."""

    width: int
    """Model width, D; the time mixing has it as its inner width too."""

    num_layers: int
    """Blocks, L."""

    ffn_width: int
    """Inner width of channel mixing, F."""

    head_size: int = 0
    """Attention, GLA and DeltaNet: value channels of a head, V. 0 for the others, which have no heads."""

    context: int = 0
    """AFT: tokens of the longest document, to which the learned position biases reach. 0 for the others."""

    position_rank: int = 0
    """AFT: rank of the position biases [context, context]; 0 for a full matrix."""

    rotary_size: int = 0
    """Attention: the first so many channels of a head turn with the position."""

    rotary_base: float = 10000.0
    """Attention: the slowest pair of channels turns by about one radian in so many tokens."""

    attention_bias: bool = False
    """Attention: whether its four matrices come with biases."""

    channel_mixing: Literal["rwkv7", "gelu"] = "rwkv7"
    """"rwkv7": RWKV-7's, with token shift. "gelu": GPT-NeoX's, two matrices with biases around a GELU."""

    parallel: bool = False
    """Whether both mixings of a block read the same input, as in GPT-NeoX."""

    embedding_norm: bool = True
    """Whether a layer norm comes before the first block, as in RWKV."""

    norm_epsilon: float = 1e-5
    """Of all layer norms."""

    def __post_init__(self) -> None:
        if self.mixer not in _NAMES:
            raise ConfigError(f"mixer {self.mixer!r} is unknown; known are {', '.join(_NAMES)}")
        wanted = ["vocab_size", "width", "num_layers", "ffn_width"]
        wanted += ["head_size"] if self.mixer in _HEADS else []
        wanted += ["context"] if self.mixer == "aft" else []
        for name in wanted:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{self.mixer} needs {name} to be a positive integer, not {value!r}")
        for name in ("head_size", "context"):
            if name not in wanted and getattr(self, name) != 0:
                raise ConfigError(f"{self.mixer} has no {name}; leave it 0")
        if self.head_size and self.width % self.head_size:
            raise ConfigError(f"width {self.width} is not a multiple of head_size {self.head_size}")
        if self.mixer == "gla" and self.head_size % 2:
            raise ConfigError(f"gla has half as many key channels as value channels: {self.head_size} is odd")
        if not 0 <= self.position_rank <= self.context:
            raise ConfigError(
                f"position_rank must be from 0 to the context {self.context}, not {self.position_rank}"
            )
        largest = self.head_size if self.mixer == "attention" else 0
        if not 0 <= self.rotary_size <= largest or self.rotary_size % 2:
            raise ConfigError(f"rotary_size must be even and from 0 to {largest}, not {self.rotary_size}")
        if self.channel_mixing not in ("rwkv7", "gelu"):
            raise ConfigError(f"channel_mixing {self.channel_mixing!r} is unknown; known are rwkv7, gelu")

    @property
    def num_heads(self) -> int:
        """Heads, H; 0 where there are none."""
        return self.width // self.head_size if self.head_size else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` takes them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RivalConfig:
        """The inverse of ``to_dict``.

        Raises:
            ConfigError: a field is missing, unknown or out of range.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"not a rival's configuration: {error}") from error
