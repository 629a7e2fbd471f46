"""What one training run is: its data, its model, its budget, its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from rookery.config import VERSIONS, ModelConfig, Version, preset
from rookery.errors import ConfigError

__all__ = ["Device", "TrainConfig"]

Device = Literal["auto", "cpu", "cuda"]

# Options that describe a new model, which a run that starts from a finished one must leave alone.
_MODEL_FIELDS = ("preset", "layers", "width", "head_size", "ffn_width", "ranks")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. The defaults are RWKV-7's published recipe (RWKV-LM, ``train_temp``), the model tiny.

    Raises:
        ConfigError: a value is out of range, or two do not fit together.
    """

    data: tuple[str, ...]
    """Text files, .jsonl files and folders of them, to learn from."""

    tokens: int | None = None
    """Budget: tokens to train on, rounded up to whole steps. Exactly one of ``tokens`` and ``minutes``."""

    minutes: float | None = None
    """Budget: minutes of training, validation during the run included. The learning rate then follows the
    clock, so that two such runs are never equal bit for bit."""

    out: str | None = None
    """The run folder; default ``runs/DATE-NAME``."""

    overwrite: bool = False
    """Replace the run that is in the run folder."""

    valid_data: tuple[str, ...] = ()
    """Files and folders to validate on; without them, a part of ``data`` is held out."""

    valid_fraction: float = 0.05
    """The part of ``data`` to hold out: whole documents where there are several, else the end of the text."""

    valid_documents: bool = False
    """Validate on whole documents, the state carried from the first token of each to its last, in place of
    windows of the context that each begin with a new state."""

    text_field: str = "text"
    """The field of each line of a .jsonl file that holds the text."""

    suffix: tuple[str, ...] = ()
    """In folders, read only files with one of these suffixes, such as ".py"; empty reads all of them."""

    exclude: tuple[str, ...] = ()
    """In folders, names of files and folders, with ``*`` and ``?``, to leave out."""

    tokenizer: str | None = None
    """"bytes", "world", "chars" (those of the data), or the path of a tokenizer JSON. Default: bytes, or the
    tokenizer of the model that ``init`` names."""

    init: str | None = None
    """A checkpoint to start from, in place of a new model."""

    version: Version = "7"
    """Generation of the architecture of a new model."""

    preset: str | None = None
    """A published size, such as "0.1B"; default "tiny" (4 layers, 128 wide). Sizes given go before it."""

    layers: int | None = None
    """Blocks, L."""

    width: int | None = None
    """Model width, D."""

    head_size: int | None = None
    """Channels of a head; default 64, or the width where that is smaller."""

    ffn_width: int | None = None
    """Inner width of channel mixing, F; default by the recipe of the version."""

    ranks: Mapping[str, int] = field(default_factory=dict)
    """Ranks of the low-rank mixings in place of the recipe's, such as ``{"decay_rank": 16}``."""

    context: int = 512
    """Tokens of a row, T."""

    batch: int = 16
    """Rows of an optimizer step, B, all micro-batches together."""

    accumulate: int = 1
    """Micro-batches that a step's rows are split into, to save memory; the gradient stays the same."""

    learning_rate: float = 6e-4
    """The peak learning rate."""

    final_learning_rate: float | None = None
    """The learning rate at the end of the cosine; default a tenth of the peak."""

    warmup_steps: int = 10
    """Steps whose learning rate is multiplied by a factor that grows from .01 to 1."""

    weight_decay: float = 0.001
    """Decay of the matrices; everything else is not decayed."""

    beta1: float = 0.9
    """AdamW's decay of the mean of gradients."""

    beta2: float = 0.99
    """AdamW's decay of the mean of squared gradients."""

    adam_epsilon: float = 1e-18
    """AdamW's epsilon."""

    clip: float = 1.0
    """The largest norm of the gradient of all parameters together."""

    l2wrap: bool = True
    """Add the recipe's gradient that keeps the largest logit of each position small."""

    bf16: bool = False
    """Compute in bfloat16 (autocast); weights, optimizer and recurrences stay float32."""

    recompute: bool = False
    """Keep of each block its inputs alone, and compute it again in the backward pass: a third more work, for
    rows that would not fit in memory otherwise."""

    compile: bool = False
    """Compile the blocks with torch.compile before the first step, which takes a minute or so."""

    device: Device = "auto"
    """"cpu", "cuda", or "auto" for the GPU where there is one."""

    seed: int = 0
    """Seed of the initial weights and of the order of the data."""

    valid_every: int = 200
    """Steps between validations; 0 validates at the end alone."""

    valid_tokens: int = 1 << 18
    """Most tokens of a validation during the run, spread evenly; 0 for no limit. At the end all are used."""

    save_every: int = 500
    """Steps between checkpoints; 0 saves at the end alone."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("there is no data to train on: name a text file, a .jsonl file or a folder")
        if (self.tokens is None) == (self.minutes is None):
            raise ConfigError("give one budget: a number of tokens or of minutes")
        for name in ("tokens", "minutes", "layers", "width"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be positive, not {value}")
        for name in ("context", "batch", "accumulate", "learning_rate", "clip", "adam_epsilon"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay", "valid_every", "valid_tokens", "save_every"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative, but is {getattr(self, name)}")
        if self.final_learning_rate is not None and not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ConfigError(
                f"final_learning_rate must be between 0 and the learning rate {self.learning_rate:g}, "
                f"not {self.final_learning_rate:g}"
            )
        if self.batch % self.accumulate:
            raise ConfigError(
                f"a batch of {self.batch} rows cannot be split into {self.accumulate} equal micro-batches"
            )
        if not 0 < self.valid_fraction < 1:
            raise ConfigError(f"valid_fraction must be between 0 and 1, not {self.valid_fraction}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if self.version not in VERSIONS:
            raise ConfigError(f"version {self.version!r} is unknown; known are {', '.join(VERSIONS)}")
        if self.device not in get_args(Device):
            raise ConfigError(f"device must be one of {', '.join(get_args(Device))}, not {self.device!r}")
        if self.init is not None:
            given = [name for name in _MODEL_FIELDS if getattr(self, name)]
            if given:
                raise ConfigError(
                    f"the model that init names has its own sizes; leave out {', '.join(given)}"
                )

    @property
    def last_learning_rate(self) -> float:
        """Where the cosine ends."""
        if self.final_learning_rate is None:
            return self.learning_rate / 10
        return self.final_learning_rate

    @property
    def tokens_per_step(self) -> int:
        """B T."""
        return self.batch * self.context

    @property
    def total_steps(self) -> int | None:
        """Steps of a token budget; None where minutes are the budget."""
        return None if self.tokens is None else -(-self.tokens // self.tokens_per_step)

    def model_config(self, vocab_size: int) -> ModelConfig:
        """The shape of the new model that these options describe.

        Raises:
            ConfigError: the sizes do not fit together, or the version has no such preset or rank.
        """
        sizes = {
            "num_layers": self.layers,
            "width": self.width,
            "head_size": self.head_size,
            "ffn_width": self.ffn_width,
            **self.ranks,
        }
        given = {name: size for name, size in sizes.items() if size is not None}
        return preset(self.version, self.preset or "tiny", vocab_size=vocab_size, **given)

    def absolute(self) -> TrainConfig:
        """The same run with absolute paths, so that it can be resumed from another folder."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("data", "valid_data"):
            values[name] = tuple(str(Path(path).resolve()) for path in values[name])
        if self.tokenizer not in (None, "bytes", "chars", "world"):
            values["tokenizer"] = str(Path(str(self.tokenizer)).resolve())
        for name in ("init", "out"):
            if values[name] is not None:
                values[name] = str(Path(values[name]).resolve())
        return TrainConfig(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` takes them back."""
        return asdict(self) | {"ranks": dict(self.ranks)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of ``to_dict``.

        Raises:
            ConfigError: a field is missing, unknown or out of range.
        """
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        try:
            return cls(**arguments)
        except TypeError as error:
            raise ConfigError(f"not a training configuration: {error}") from error
