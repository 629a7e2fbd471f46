"""How a tokenizer's specification travels with a model.

In a ``.safetensors`` file it is one key of the metadata; beside a file that has no metadata, such as
``model.pth``, it lies in ``model.tokenizer.json``. Both hold ``{"format": 1, "tokenizer": {...}}``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rookery.errors import CheckpointError

__all__ = ["METADATA_KEY", "decode", "encode", "read_beside", "sidecar"]

METADATA_KEY = "rookery"
_FORMAT = 1


def encode(tokenizer: dict[str, Any] | None) -> str:
    """The JSON text that carries a specification."""
    return json.dumps({"format": _FORMAT, "tokenizer": tokenizer})


def decode(text: str, path: str | Path) -> dict[str, Any] | None:
    """The specification that ``text`` carries.

    Raises:
        CheckpointError: ``text`` is not what ``encode`` writes, or is of a later format.
    """
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(path, f"its tokenizer specification is not JSON: {error}") from error
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise CheckpointError(
            path,
            f"its tokenizer specification is not of format {_FORMAT}; was it written by a later rookery?",
        )
    tokenizer = values.get("tokenizer")
    if tokenizer is not None and not isinstance(tokenizer, dict):
        raise CheckpointError(path, "its tokenizer specification holds no object under 'tokenizer'")
    return tokenizer


def sidecar(path: Path) -> Path:
    """The file beside ``path`` that holds its tokenizer."""
    return path.with_suffix(".tokenizer.json")


def read_beside(path: Path) -> dict[str, Any] | None:
    """The tokenizer of the file beside ``path``; None if there is no such file.

    Raises:
        CheckpointError: the file cannot be read or holds something else.
    """
    beside = sidecar(path)
    if not beside.exists():
        return None
    try:
        return decode(beside.read_text(encoding="utf-8"), beside)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(beside, f"cannot be read: {error}") from error
