"""Saving: the format follows from the file's suffix; a reader finds the old file or the new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from rookery.checkpoints import tokenizer_spec
from rookery.checkpoints.checkpoint import Checkpoint, checked_tensors
from rookery.checkpoints.gguf_file import write_gguf
from rookery.checkpoints.safetensors_file import write_safetensors
from rookery.checkpoints.torch_file import write_torch
from rookery.errors import CheckpointError
from rookery.files import atomic_write

__all__ = ["save", "writing"]


def save(checkpoint: Checkpoint, path: str | Path) -> None:
    """Save a model as ``.safetensors``, ``.pth`` or ``.gguf``, by the suffix of ``path``.

    The tokenizer goes into the file's metadata, or beside a ``.pth`` as ``NAME.tokenizer.json``. Blocks stay
    blocks in ``.gguf``, and are float32 in the others. Should anything fail, the old file is as it was.

    Raises:
        CheckpointError: the suffix is unknown, the tensors are not those of ``checkpoint.config``, or the
            disk refuses.
    """
    path = Path(path)
    writer = _WRITERS.get(path.suffix)
    if writer is None:
        raise CheckpointError(path, f"has no suffix of a format that is written: {', '.join(_WRITERS)}")
    writer(replace(checkpoint, tensors=checked_tensors(checkpoint, path)), path)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """``atomic_write`` whose OSError is a CheckpointError that says the old file is untouched."""
    try:
        with atomic_write(path) as file:
            yield file
    except OSError as error:
        kept = "; the file that was there is untouched" if path.exists() else ""
        raise CheckpointError(path, f"cannot be written: {error.strerror or error}{kept}") from error


def _save_safetensors(checkpoint: Checkpoint, path: Path) -> None:
    # "pt" tells other readers, transformers among them, that the layout is torch's.
    metadata = {"format": "pt", tokenizer_spec.METADATA_KEY: tokenizer_spec.encode(checkpoint.tokenizer)}
    with writing(path) as file:
        write_safetensors(file, checkpoint.tensors, metadata)


def _save_torch(checkpoint: Checkpoint, path: Path) -> None:
    with writing(path) as file:
        write_torch(file, checkpoint.tensors)
    beside = tokenizer_spec.sidecar(path)
    if checkpoint.tokenizer is not None:
        with writing(beside) as file:
            file.write(tokenizer_spec.encode(checkpoint.tokenizer).encode())
    else:
        # It would be of the model that was replaced.
        try:
            beside.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(beside, f"cannot be removed: {error.strerror or error}") from error


def _save_gguf(checkpoint: Checkpoint, path: Path) -> None:
    with writing(path) as file:
        write_gguf(file, checkpoint, path)


_WRITERS: dict[str, Callable[[Checkpoint, Path], None]] = {
    ".safetensors": _save_safetensors,
    ".pth": _save_torch,
    ".gguf": _save_gguf,
}
