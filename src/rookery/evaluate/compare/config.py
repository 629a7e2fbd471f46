"""What one comparison is: its data, its mixers, its budget, its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rookery.errors import ConfigError
from rookery.evaluate.tasks import TASKS

__all__ = ["STANDARD_LIBRARY", "CompareConfig", "DataSet", "data_set"]

STANDARD_LIBRARY = "stdlib"
"""As a data set: the source code of the standard library of the running Python."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A text to learn, which gets a section of the page."""

    name: str
    """Of the section, and of the files."""

    path: str
    """File or folder."""

    suffix: tuple[str, ...] = ()
    """In a folder, read only files that end in one of these."""

    exclude: tuple[str, ...] = ()
    """In a folder, patterns for names to leave out."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """One comparison.

    Raises:
        ConfigError: a value is out of range, or two do not fit together.
    """

    data: tuple[DataSet, ...] = ()
    """Texts to learn, one section each."""

    mixers: tuple[str, ...]
    """Names of ``rookery.rivals.MIXERS``."""

    parameters: int = 1_000_000
    """Parameters of a model of text, embedding and head included; every mixer is within 2 % of it."""

    layers: int = 4
    """Blocks of a model of text."""

    width: int = 128
    """Width of a model of text."""

    seeds: int = 2
    """Models of each mixer and text; seeds 0, 1, ... decide the initial weights and the order of the data."""

    minutes: float | None = None
    """Budget of the whole comparison. Exactly one of ``minutes`` and ``tokens``."""

    tokens: int | None = None
    """Budget in tokens of each model of text, and of each of a task unless ``task_tokens`` is given."""

    task_tokens: int | None = None
    """Budget of each model of a task in tokens, in place of what ``minutes`` or ``tokens`` give."""

    tokenizer: str = "bytes"
    """"bytes" or "chars"."""

    context: int = 256
    """Tokens of a row of training, T."""

    batch: int = 8
    """Rows of an optimizer step, B."""

    learning_rate: float = 2e-3
    """The peak learning rate, of every mixer; it ends at a tenth."""

    warmup_steps: int = 50
    """Steps of warm-up; at most a tenth of all."""

    weight_decay: float = 0.1
    """Decay of the matrices."""

    valid_fraction: float = 0.1
    """The part of each text that is held out."""

    contexts: tuple[int, ...] = (64, 256, 1024, 4096)
    """Contexts that the loss is measured at."""

    valid_tokens: int = 49152
    """Most held-out tokens that each context is measured on, the same ones for all."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Names of ``rookery.evaluate.tasks.TASKS``."""

    task_seeds: int = 1
    """Models of each mixer and task."""

    task_parameters: int = 150_000
    """Parameters of a model of a task."""

    task_layers: int = 2
    """Blocks of a model of a task."""

    task_width: int = 64
    """Width of a model of a task."""

    task_batch_tokens: int = 2048
    """Tokens of an optimizer step of a task: as many examples as that makes."""

    costs: bool = True
    """Measure time and memory by length."""

    training_lengths: tuple[int, ...] = (64, 256, 1024, 2048, 4096, 8192, 16384, 32768)
    """Contexts that training is timed at, one row in a step."""

    generation_lengths: tuple[int, ...] = (1024, 4096, 16384, 32768, 65536)
    """Numbers of tokens after which generation is timed."""

    threads: int | None = None
    """Threads of torch; default the cores of this machine. So many tasks run at once, one thread each."""

    def __post_init__(self) -> None:
        if not self.mixers:
            raise ConfigError("there is nothing to compare: name at least one mixer")
        if not self.data and not self.tasks and not self.costs:
            raise ConfigError("there is nothing to measure: name data or tasks, or leave costs on")
        if (self.minutes is None) == (self.tokens is None):
            raise ConfigError("give one budget: a number of minutes for all, or of tokens for each model")
        for name, value in vars(self).items():
            if isinstance(value, bool) or name in ("seeds", "weight_decay", "warmup_steps"):
                continue
            if isinstance(value, int | float) and not value > 0:
                raise ConfigError(f"{name} must be positive, not {value}")
        for name in ("seeds", "task_seeds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.valid_fraction < 1:
            raise ConfigError(f"valid_fraction must be between 0 and 1, not {self.valid_fraction}")
        if self.tokenizer not in ("bytes", "chars"):
            raise ConfigError(f"the tokenizer must be bytes or chars, not {self.tokenizer!r}")
        for name in ("contexts", "training_lengths", "generation_lengths"):
            lengths = getattr(self, name)
            if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
                raise ConfigError(f"{name} must be growing positive numbers, not {lengths}")
        unknown = [context for context in self.contexts if self.contexts[-1] % context]
        if unknown:
            raise ConfigError(
                f"every context must divide the longest, {self.contexts[-1]}, so that all are measured on "
                f"the same tokens; {unknown[0]} does not"
            )
        for kind, names, known in (
            ("task", self.tasks, list(TASKS)),
            ("data set", [each.name for each in self.data], None),
            ("mixer", self.mixers, None),
        ):
            twice = [name for name in names if list(names).count(name) > 1]
            if twice:
                raise ConfigError(f"the {kind} {twice[0]!r} is named twice")
            strange = [name for name in names if known is not None and name not in known]
            if strange:
                raise ConfigError(f"there is no {kind} {strange[0]!r}; there are {', '.join(known or ())}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` takes them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CompareConfig:
        """The inverse of ``to_dict``.

        Raises:
            ConfigError: a field is missing, unknown or out of range.
        """
        try:
            arguments = {name: _frozen(value) for name, value in values.items()}
            arguments["data"] = tuple(
                DataSet(**{name: _frozen(value) for name, value in each.items()})
                for each in values.get("data", ())
            )
            return cls(**arguments)
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"not a configuration of a comparison: {error}") from error

    def differences(self, other: CompareConfig) -> list[str]:
        """Names of the fields in which two configurations differ."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]


def data_set(path: str, *, suffix: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> DataSet:
    """A data set of a file or folder, or of the standard library for "stdlib" (if there is no such file)."""
    if path == STANDARD_LIBRARY and not Path(path).exists():
        from rookery.train.documents import standard_library

        folder, endings, left_out = standard_library()
        return DataSet(name=STANDARD_LIBRARY, path=folder, suffix=endings, exclude=left_out)
    absolute = Path(path).resolve()
    return DataSet(name=absolute.stem or "data", path=str(absolute), suffix=suffix, exclude=exclude)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
