"""Every error that rookery raises on purpose, as one tree.

    RookeryError
    ├── ConfigError          sizes or options that do not fit together
    ├── CheckpointError      a model file that cannot be read or written
    ├── StateError           a recurrent state that does not belong to the model, or a broken state file
    ├── TokenizerError       no tokenizer, a broken tokenizer file, text it cannot encode
    ├── DataError            training or evaluation data that cannot be used
    ├── TrainingError        training that cannot go on: a loss or a gradient that is not finite
    └── MissingExtraError    an optional dependency is not installed (also an ImportError)

A message says what was wrong, where, and what to do. The command line prints it without a traceback.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "MissingExtraError",
    "RookeryError",
    "StateError",
    "TokenizerError",
    "TrainingError",
    "find",
    "require",
]


class RookeryError(Exception):
    """Base of all errors that rookery raises on purpose."""


class ConfigError(RookeryError, ValueError):
    """Sizes or options that do not fit together."""


class CheckpointError(RookeryError, ValueError):
    """A model file that cannot be read or written.

    The message starts with the file, then the tensor if one is at fault, then what was expected.
    """

    def __init__(self, path: str | Path | None, problem: str, *, tensor: str | None = None):
        self.path = None if path is None else Path(path)
        self.tensor = tensor
        self.problem = problem
        where = [str(path)] if path is not None else []
        if tensor is not None:
            where.append(f"tensor {tensor!r}")
        super().__init__(": ".join([*where, problem]))


class StateError(RookeryError, ValueError):
    """A recurrent state that does not belong to the model, or a broken state file."""


class TokenizerError(RookeryError, ValueError):
    """No tokenizer, a broken tokenizer file, or text that the tokenizer cannot encode."""


class DataError(RookeryError, ValueError):
    """Training or evaluation data that cannot be used; the message names the file."""


class TrainingError(RookeryError, ArithmeticError):
    """Training that cannot go on: a loss or a gradient that is not finite; the message names the step."""


class MissingExtraError(RookeryError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""


def find(module: str) -> ModuleType | None:
    """Import a module of this package; None where what it needs is not installed or was not built."""
    try:
        return importlib.import_module(module)
    except MissingExtraError:
        return None


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Args:
        module: name to import, such as ``"torch"``.
        extra: the extra of this package that installs it, such as ``"train"``.
        purpose: what needs it, as the beginning of a sentence: ``"Training"``.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{purpose} needs {module}, which is not installed: pip install 'rookery[{extra}]'"
        ) from error
