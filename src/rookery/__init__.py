"""RWKV language models: train, tune, generate, chat and measure RWKV-4, 5, 6 and 7.

    import rookery
    model = rookery.load("model.safetensors")
    print(model.generate("def fibonacci(n):", max_tokens=100))

    logits, state = model([1, 2, 3])            # ints in, float32 [T, N] out
    logits, state = model([4], state)

Importing this package imports neither torch nor the engine; both come with the first model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rookery.config import ModelConfig
from rookery.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingExtraError,
    RookeryError,
    StateError,
    TokenizerError,
    TrainingError,
)

if TYPE_CHECKING:
    __version__: str
    from rookery.generate import LanguageModel, SamplingParams, Session, load
    from rookery.state import State

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LanguageModel",
    "MissingExtraError",
    "ModelConfig",
    "RookeryError",
    "SamplingParams",
    "Session",
    "State",
    "StateError",
    "TokenizerError",
    "TrainingError",
    "__version__",
    "load",
]

# Imported at first use: numpy alone would take half of the time that `import rookery` may take.
_LAZY = {
    "LanguageModel": "rookery.generate",
    "SamplingParams": "rookery.generate",
    "Session": "rookery.generate",
    "State": "rookery.state",
    "load": "rookery.generate",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        globals()[name] = _version()
        return globals()[name]
    if name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _version() -> str:
    # Imported here: it takes as long as the rest of this package.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rookery")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0.0.0"


def __dir__() -> list[str]:
    return sorted(__all__)
