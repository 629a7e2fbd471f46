"""Loading: a file is known by its first bytes, a folder by what lies in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rookery.checkpoints import checkpoint as _checkpoint
from rookery.checkpoints import tokenizer_spec
from rookery.checkpoints.checkpoint import Checkpoint, assemble
from rookery.checkpoints.gguf_container import MAGIC as GGUF_MAGIC
from rookery.checkpoints.gguf_file import read_gguf
from rookery.checkpoints.huggingface import is_huggingface, load_huggingface
from rookery.checkpoints.quantized import Weight
from rookery.checkpoints.rwkv_cpp import MAGIC as RWKV_CPP_MAGIC
from rookery.checkpoints.rwkv_cpp import read_rwkv_cpp
from rookery.checkpoints.safetensors_file import read_safetensors
from rookery.checkpoints.torch_file import LEGACY_MAGIC, read_torch
from rookery.checkpoints.torch_file import MAGIC as ZIP_MAGIC
from rookery.errors import CheckpointError

__all__ = ["load"]

Contents = tuple[Mapping[str, Weight], dict[str, Any] | None]


def load(path: str | Path, *, check_finite: bool = False) -> Checkpoint:
    """Load a model: a file, or a folder with ``model.safetensors`` or a Hugging Face model in it.

    Files are mapped into memory, so that loading reads names and shapes, and weights come from the disk when
    they are used.

    Args:
        path: a ``.pth``, ``.safetensors`` or ``.gguf`` file, a rwkv.cpp ``.bin`` file, or a folder.
        check_finite: read every weight and refuse NaN and infinity.

    Raises:
        CheckpointError: the file is broken, or is not one whole RWKV model. The message names the file, the
            tensor, and what was expected.
    """
    path = Path(path)
    loaded = _load_folder(path) if path.is_dir() else _load_file(path)
    if check_finite:
        _checkpoint.check_finite(loaded)
    return loaded


def _load_folder(folder: Path) -> Checkpoint:
    if is_huggingface(folder):
        return load_huggingface(folder)
    model = folder / "model.safetensors"
    if model.is_file():
        return _load_file(model)
    raise CheckpointError(
        folder, "is a folder without a model; expected model.safetensors or a Hugging Face model in it"
    )


def _load_file(path: Path) -> Checkpoint:
    tensors, tokenizer = _reader(path)(path)
    return assemble(tensors, tokenizer=tokenizer, path=path)


def _read_safetensors(path: Path) -> Contents:
    tensors, metadata = read_safetensors(path)
    text = metadata.get(tokenizer_spec.METADATA_KEY)
    return tensors, None if text is None else tokenizer_spec.decode(text, path)


def _read_rwkv_cpp(path: Path) -> Contents:
    return read_rwkv_cpp(path), tokenizer_spec.read_beside(path)


def _read_torch(path: Path) -> Contents:
    return read_torch(path), tokenizer_spec.read_beside(path)


Reader = Callable[[Path], Contents]

# What a file is, told by its first bytes: how to read it.
_READERS: tuple[tuple[Callable[[bytes], bool], Reader], ...] = (
    (lambda head: head.startswith(ZIP_MAGIC), _read_torch),
    (lambda head: head.startswith(RWKV_CPP_MAGIC), _read_rwkv_cpp),
    (lambda head: head.startswith(GGUF_MAGIC), read_gguf),
    (lambda head: head[8:9] == b"{", _read_safetensors),
)

# Files that other programs call models, told by their first bytes: why they are not read.
_REFUSED: dict[bytes, str] = {
    LEGACY_MAGIC[:14]: "is of torch's format before 1.6; write it anew with a current torch: "
    "torch.save(torch.load(path, weights_only=True), new_path)",
    b"lmgg": "is a file of an early ggml format, which is not supported; convert from the original .pth",
    b"tjgg": "is a file of an early ggml format, which is not supported; convert from the original .pth",
    b"version https://git-lfs": "is a Git LFS pointer, not the model: fetch the file itself (git lfs pull)",
}


def _reader(path: Path) -> Reader:
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error
    for magic, problem in _REFUSED.items():
        if head.startswith(magic):
            raise CheckpointError(path, problem)
    for matches, reader in _READERS:
        if matches(head):
            return reader
    if not head:
        raise CheckpointError(path, "is empty")
    raise CheckpointError(
        path,
        f"begins with {head[:8]!r}, which no checkpoint format does; expected a .pth (zip), .safetensors, "
        ".gguf or rwkv.cpp .bin file",
    )
