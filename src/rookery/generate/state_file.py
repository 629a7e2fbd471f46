"""Sessions in files: the state of one stream, and all that is needed to go on exactly.

A ``.safetensors`` file with the tensors ``time_shift`` [L, 1, D], ``channel_shift`` [L, 1, D], ``wkv``
([L, 1, H, K, V], or [L, 1, 3, A] for RWKV-4) and, once a token was read, ``logits`` [N]: all float32. The one
metadata entry ``rookery_state`` is JSON:

    {"format": 1, "config": {...}, "model": fingerprint, "position": tokens read,
     "partial": ids of a character whose end has not come, "sampler": {...},
     "checksum": CRC-32 of the tensors in alphabetical order}
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rookery.checkpoints import Quantized, Weight, dense
from rookery.checkpoints.safetensors_file import read_safetensors, write_safetensors
from rookery.config import ModelConfig
from rookery.errors import CheckpointError, ConfigError, StateError
from rookery.files import atomic_write
from rookery.generate.sampling import Sampler
from rookery.state import State, check_state

__all__ = ["SavedSession", "fingerprint", "read_state", "write_state"]

_KEY = "rookery_state"
_FORMAT = 1
_SAMPLE = 16


@dataclass(frozen=True, kw_only=True)
class SavedSession:
    """What a state file holds."""

    config: ModelConfig
    """The shape of the model."""

    model: str
    """The model's ``fingerprint``; empty where none is known."""

    state: State[np.ndarray]
    """Of one stream, float32."""

    logits: np.ndarray | None
    """[N] float32, after the last token; None before the first."""

    position: int
    """Tokens read."""

    partial: tuple[int, ...]
    """The last tokens, where they end inside a character."""

    sampler: Sampler
    """The sampling parameters, the place in the random numbers, and what the penalties count."""


def fingerprint(tensors: Mapping[str, Weight]) -> str:
    """A short name for the weights of a model, the same in every file that holds them exactly.

    It hashes the shape and the first and last 16 values of each tensor, in float32, so that it reads little
    of a large file. Any training, full or low-rank, changes it.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        ends = _ends(tensor)
        digest.update(f"{name} {tensor.shape} ".encode())
        digest.update(ends.astype("<f4").tobytes())
    return digest.hexdigest()[:32]


def _ends(tensor: Weight) -> np.ndarray:
    if isinstance(tensor, Quantized) and not tensor.transposed:
        # A row has at least 32 weights: the first and the last are enough.
        ends = replace(tensor, shape=(2, tensor.columns), blocks=tensor.blocks[[0, -1]])
        flat = ends.dequantize().reshape(-1)
    else:
        flat = dense(tensor).reshape(-1)
    return flat if tensor.size <= 2 * _SAMPLE else np.concatenate([flat[:_SAMPLE], flat[-_SAMPLE:]])


def write_state(path: str | Path, saved: SavedSession) -> None:
    """Write a state file; one that is there stays as it was until the new one is whole.

    Raises:
        StateError: the file cannot be written.
    """
    tensors = {name: np.ascontiguousarray(part) for name, part in saved.state._asdict().items()}
    if saved.logits is not None:
        tensors["logits"] = saved.logits
    about = {
        "format": _FORMAT,
        "config": saved.config.to_dict(),
        "model": saved.model,
        "position": saved.position,
        "partial": list(saved.partial),
        "sampler": saved.sampler.to_dict(),
        "checksum": _checksum(tensors),
    }
    try:
        with atomic_write(path) as file:
            write_safetensors(file, tensors, {_KEY: json.dumps(about)})
    except OSError as error:
        raise StateError(f"{path}: the state cannot be written: {error.strerror or error}") from error


def read_state(path: str | Path, config: ModelConfig, model: str = "") -> SavedSession:
    """Read a state file for a model.

    Args:
        path: the file.
        config: the shape of the model that is to go on from it.
        model: that model's ``fingerprint``; empty to accept any of this shape.

    Raises:
        StateError: the file is none, is broken, or is of another model.
    """
    try:
        mapped, metadata = read_safetensors(path)
        # The file may be replaced or cut while the session lives.
        tensors = {name: tensor.copy() for name, tensor in mapped.items()}
    except CheckpointError as error:
        raise StateError(f"{path}: not a state file: {error.problem}") from error
    if _KEY not in metadata:
        raise StateError(f"{path}: holds tensors, but is not a state file of rookery (is it a model?)")
    try:
        about = json.loads(metadata[_KEY])
        version = about["format"]
        if version != _FORMAT:
            raise StateError(
                f"{path}: state format {version!r} is of another release; this one reads {_FORMAT}"
            )
        saved = SavedSession(
            config=ModelConfig.from_dict(about["config"]),
            model=str(about["model"]),
            state=State(*(tensors[name] for name in State._fields)),
            logits=tensors.get("logits"),
            position=int(about["position"]),
            partial=tuple(int(token) for token in about["partial"]),
            sampler=Sampler.from_dict(about["sampler"]),
        )
    except StateError as error:
        raise error if str(path) in str(error) else StateError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise StateError(f"{path}: a broken state file: {type(error).__name__} {error}") from error
    _check_model(path, saved, config, model)
    if about.get("checksum") != _checksum(tensors):
        raise StateError(f"{path}: a broken state file: its tensors are not those that were saved")
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise StateError(f"{path}: a broken state: {name} holds NaN or infinity")
    return saved


def _check_model(path: str | Path, saved: SavedSession, config: ModelConfig, model: str) -> None:
    for name, here in config.to_dict().items():
        there = getattr(saved.config, name)
        if there != here:
            raise StateError(
                f"{path}: the state of another model: its {name} is {there}, this model's is {here}"
            )
    if model and saved.model and model != saved.model:
        raise StateError(f"{path}: the state of another model of the same shape; its weights differ")
    try:
        check_state(saved.state, config, 1)
    except StateError as error:
        raise StateError(f"{path}: {error}") from error
    if saved.logits is not None and saved.logits.shape != (config.vocab_size,):
        raise StateError(f"{path}: logits have shape {saved.logits.shape}, not ({config.vocab_size},)")
    if (saved.logits is None) != (saved.position == 0):
        raise StateError(f"{path}: a broken state file: {saved.position} tokens read, logits do not fit that")


def _checksum(tensors: Mapping[str, Any]) -> int:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data, value)
    return value
