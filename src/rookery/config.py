"""The shape of a model, and the published sizes.

The legend of dimensions for the whole project:

    B  batch            H  heads                       A  attention width (time mixing's inner width)
    T  time             K  key channels of a head      F  channel mixing's inner width
    D  model width      V  value channels of a head    N  vocabulary size
    L  layers
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from rookery.errors import ConfigError

__all__ = ["PRESETS", "VERSIONS", "ModelConfig", "Size", "Version", "preset", "sized"]

Version = Literal["4", "5.0", "5.1", "5.2", "6", "7"]
VERSIONS: tuple[Version, ...] = get_args(Version)

# Low-rank mixing of each version, by the name of its field below.
_RANKS: dict[Version, tuple[str, ...]] = {
    "4": (),
    "5.0": (),
    "5.1": (),
    "5.2": (),
    "6": ("mix_rank", "decay_rank"),
    "7": ("decay_rank", "iclr_rank", "value_rank", "gate_rank"),
}
_ALL_RANKS = ("mix_rank", "decay_rank", "iclr_rank", "value_rank", "gate_rank")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of one RWKV model. Everything here can be read off a checkpoint's names and shapes."""

    version: Version
    """Generation of the architecture: "4", "5.0", "5.1", "5.2", "6" or "7"."""

    vocab_size: int
    """Rows of the embedding and of the head, N."""

    width: int
    """Model width, D."""

    num_layers: int
    """Blocks, L."""

    attention_width: int
    """Inner width of time mixing, A: channels of receptance, key and value. Usually D."""

    ffn_width: int
    """Inner width of channel mixing, F."""

    head_size: int = 0
    """Key and value channels of a head, K = V. 0 for RWKV-4, which has no heads."""

    mix_rank: int = 0
    """RWKV-6: rank of the data-dependent token shift, E."""

    decay_rank: int = 0
    """RWKV-6 and 7: rank of the data-dependent decay, G (``w1``, ``w2``)."""

    iclr_rank: int = 0
    """RWKV-7: rank of the in-context learning rate (``a1``, ``a2``)."""

    value_rank: int = 0
    """RWKV-7: rank of the value residual's mix (``v1``, ``v2``)."""

    gate_rank: int = 0
    """RWKV-7: rank of the output gate (``g1``, ``g2``)."""

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise ConfigError(f"version {self.version!r} is unknown; known are {', '.join(VERSIONS)}")
        wanted = ["vocab_size", "width", "num_layers", "attention_width", "ffn_width"]
        wanted += [] if self.version == "4" else ["head_size"]
        wanted += _RANKS[self.version]
        for name in wanted:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"RWKV-{self.version} needs {name} to be a positive integer, not {value!r}")
        for name in ("head_size", *_ALL_RANKS):
            if name not in wanted and getattr(self, name) != 0:
                raise ConfigError(f"RWKV-{self.version} has no {name}; leave it 0")
        if self.version != "4" and self.attention_width % self.head_size:
            raise ConfigError(
                f"attention_width {self.attention_width} is not a multiple of head_size {self.head_size}"
            )

    @property
    def num_heads(self) -> int:
        """Heads, H; 0 for RWKV-4."""
        return self.attention_width // self.head_size if self.head_size else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` takes them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of ``to_dict``.

        Raises:
            ConfigError: a field is missing, unknown or out of range.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"not a model configuration: {error}") from error


def sized(
    version: Version,
    *,
    vocab_size: int,
    width: int,
    num_layers: int,
    head_size: int | None = None,
    ffn_width: int | None = None,
    **ranks: int,
) -> ModelConfig:
    """A configuration from a few sizes; what is left out follows the published recipe.

    Args:
        head_size: default 64, or the width where that is smaller.
        ffn_width: default 4 D, and for the versions with a gate and a receptance in channel mixing (5.1, 5.2,
            6) 3.5 D rounded down to a multiple of 32, which pays for the gate.
        ranks: any of the rank fields of ``ModelConfig``, in place of the recipe's.

    Raises:
        ConfigError: the sizes do not fit together.
    """
    if version not in VERSIONS:
        raise ConfigError(f"version {version!r} is unknown; known are {', '.join(VERSIONS)}")
    if width < 1:
        raise ConfigError(f"width must be positive, not {width}")
    if ffn_width is None:
        narrow = version in ("5.1", "5.2", "6")
        ffn_width = max(int(width * 3.5) // 32 * 32, 32) if narrow else 4 * width
    if version == "4":
        if head_size:
            raise ConfigError("RWKV-4 has no heads; leave head_size out")
        head_size = 0
    elif head_size is None:
        head_size = min(64, width)
    recipe = _recipe_ranks(version, width)
    unknown = set(ranks) - set(recipe)
    if unknown:
        raise ConfigError(f"RWKV-{version} has no {', '.join(sorted(unknown))}")
    return ModelConfig(
        version=version,
        vocab_size=vocab_size,
        width=width,
        num_layers=num_layers,
        attention_width=width,
        ffn_width=ffn_width,
        head_size=head_size,
        **(recipe | ranks),
    )


def _recipe_ranks(version: Version, width: int) -> dict[str, int]:
    if version == "6":
        large = width >= 4096
        return {"mix_rank": 64 if large else 32, "decay_rank": 128 if large else 64}
    if version == "7":
        # RWKV-LM, train_temp: max(32, 32 round(c sqrt(D) / 32)).
        factors = {"decay_rank": 2.5, "iclr_rank": 2.5, "value_rank": 1.7, "gate_rank": 5.0}
        return {name: max(32, 32 * round(c * width**0.5 / 32)) for name, c in factors.items()}
    return {}


class Size(NamedTuple):
    """One published size: what the recipe does not say."""

    num_layers: int
    width: int
    ranks: Mapping[str, int] = MappingProxyType({})


def _ranks7(decay: int, iclr: int, value: int, gate: int) -> dict[str, int]:
    return {"decay_rank": decay, "iclr_rank": iclr, "value_rank": value, "gate_rank": gate}


# By generation and name. The recipe's ranks for RWKV-7 are those of new trainings; released models above 0.1B
# have others (RWKV-LM's README, and the shapes in the published files).
PRESETS: dict[str, dict[str, Size]] = {
    "4": {
        "tiny": Size(4, 128),
        "0.1B": Size(12, 768),
        "0.4B": Size(24, 1024),
        "1.5B": Size(24, 2048),
        "3B": Size(32, 2560),
        "7B": Size(32, 4096),
        "14B": Size(40, 5120),
    },
    "5": {
        "tiny": Size(4, 128),
        "0.1B": Size(12, 768),
        "0.4B": Size(24, 1024),
        "1.5B": Size(24, 2048),
        "3B": Size(32, 2560),
        "7B": Size(32, 4096),
    },
    "6": {
        "tiny": Size(4, 128),
        "0.1B": Size(12, 768),
        "0.4B": Size(24, 1024),
        "1.6B": Size(24, 2048),
        "3B": Size(32, 2560),
        "7B": Size(32, 4096),
        "14B": Size(61, 4096),
    },
    "7": {
        "tiny": Size(4, 128),
        "0.1B": Size(12, 768),
        "0.4B": Size(24, 1024, _ranks7(64, 64, 32, 128)),
        "1.5B": Size(24, 2048, _ranks7(96, 96, 64, 256)),
        "2.9B": Size(32, 2560, _ranks7(96, 96, 64, 320)),
        "7.2B": Size(32, 4096, _ranks7(128, 128, 96, 480)),
    },
}


def preset(version: Version, size: str, *, vocab_size: int | None = None, **changes: int) -> ModelConfig:
    """The configuration of a published size, or ``"tiny"`` (4 layers, 128 wide).

    Args:
        size: a name of ``PRESETS[generation]``, such as ``"0.1B"``.
        vocab_size: default 50277 (the Pile's tokenizer) for version 4 and 65536 (World) for the others.
        changes: any size that ``sized`` takes, in place of the published one. Another width takes the
            recipe's ranks.

    Raises:
        ConfigError: there is no such version or size, or the changes do not fit.
    """
    if version not in VERSIONS:
        raise ConfigError(f"version {version!r} is unknown; known are {', '.join(VERSIONS)}")
    sizes = PRESETS[version.split(".")[0]]
    if size not in sizes:
        raise ConfigError(f"RWKV-{version} has no preset {size!r}; there are {', '.join(sizes)}")
    published = sizes[size]
    if vocab_size is None:
        vocab_size = 50277 if version == "4" else 65536
    ranks = {} if "width" in changes else published.ranks
    chosen = {"num_layers": published.num_layers, "width": published.width, **ranks, **changes}
    return sized(version, vocab_size=vocab_size, **chosen)
