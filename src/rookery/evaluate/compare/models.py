"""The models of a comparison: every mixer in the same blocks, at the same number of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rookery.errors import ConfigError
from rookery.evaluate.compare.config import CompareConfig
from rookery.models.sequence_model import SequenceModel
from rookery.rivals import MIXERS, build, sizes_for

__all__ = ["check_mixers", "describe", "make_model"]


def check_mixers(names: Sequence[str]) -> None:
    """See that all mixers exist.

    Raises:
        ConfigError: one does not.
    """
    for name in names:
        if name not in MIXERS:
            raise ConfigError(f"there is no mixer {name!r}; there are {', '.join(MIXERS)}")


def make_model(
    config: CompareConfig, mixer: str, vocab_size: int, *, seed: int, task: bool = False
) -> SequenceModel[Any, Any]:
    """A new model of a mixer, with the sizes of a model of text or of a task.

    Raises:
        ConfigError: no sizes give the number of parameters.
    """
    sizes = sizes_for(
        mixer,
        vocab_size=vocab_size,
        width=config.task_width if task else config.width,
        num_layers=config.task_layers if task else config.layers,
        parameters=config.task_parameters if task else config.parameters,
    )
    return build(sizes, seed=seed)


def describe(model: SequenceModel[Any, Any]) -> dict[str, Any]:
    """What a result says of its model."""
    return {"parameters": model.num_parameters}
