"""The models of a comparison: every mixer in the same blocks, at the same number of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from rookery.errors import ConfigError
from rookery.evaluate.compare.config import CompareConfig
from rookery.rivals import MIXERS, build, sizes_for

__all__ = ["TOLERANCE", "check_mixers", "count_parameters", "describe", "make_model"]

TOLERANCE = 0.02
"""How far a model's parameters may be from what was asked for."""


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
) -> nn.Module:
    """A new model of a mixer, with the sizes of a model of text or of a task.

    Raises:
        ConfigError: no sizes give the number of parameters.
    """
    wanted = config.task_parameters if task else config.parameters
    sizes = sizes_for(
        mixer,
        vocab_size=vocab_size,
        width=config.task_width if task else config.width,
        num_layers=config.task_layers if task else config.layers,
        parameters=wanted,
    )
    model = build(sizes, seed=seed)
    found = count_parameters(model)
    if abs(found - wanted) > TOLERANCE * wanted:
        raise ConfigError(
            f"{mixer}: {found:,} parameters is the nearest to {wanted:,} that these sizes allow, which is "
            f"not within {TOLERANCE:.0%}; choose another width or number of layers"
        )
    return model


def count_parameters(model: nn.Module) -> int:
    """All parameters, embedding and head included."""
    return sum(parameter.numel() for parameter in model.parameters())


def describe(model: nn.Module) -> dict[str, Any]:
    """What a result says of its model."""
    return {"parameters": count_parameters(model)}
