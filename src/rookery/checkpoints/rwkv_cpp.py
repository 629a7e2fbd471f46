"""The ``.bin`` format of rwkv.cpp, read back to official names, orientation and shapes.

The file: six int32 (magic ``ggmf``, version 100 or 101, vocabulary, width, layers, dtype), then for each
tensor three int32 (axes, length of its name, dtype), its shape reversed, its name, its data.

rwkv.cpp computes some functions of weights once, when it writes the file; reading undoes them:

- RWKV-4: ``time_decay`` holds -exp(w), and RWKV-5: exp(-exp(w)); 5.0 and 5.1: ``time_first`` holds exp(u).
- RWKV-6 and 7: low-rank matrices are transposed; RWKV-7: the six ``x_*`` lie in one ``x_rwkvag``.

Transposes and splits are undone exactly. The logarithms are taken in float64 and rounded to float32, so that
applying the function again gives what the file holds to about one part in 10^6 of its logarithm. A decay that
rwkv.cpp had rounded to 1 or 0 no longer says which w it came from: it becomes one that rounds the same way.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rookery.checkpoints.checkpoint import DTYPES
from rookery.checkpoints.mapped_file import MappedFile
from rookery.errors import CheckpointError

__all__ = ["MAGIC", "read_rwkv_cpp"]

MAGIC = b"fmgg"  # 0x67676d66, little-endian

_FORMATS = (100, 101)
_DTYPES = {0: "float32", 1: "float16"}
_QUANTIZED = {2: "Q4_0", 3: "Q4_1", 4: "Q4_1_O", 5: "Q4_2", 6: "Q4_3", 7: "Q5_0", 8: "Q5_1", 9: "Q8_0"}

_HEADER = struct.Struct("<6i")
_TENSOR = struct.Struct("<3i")


def read_rwkv_cpp(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a rwkv.cpp file (F32 or F16) under official names.

    Raises:
        CheckpointError: the file is truncated or broken, quantized, or holds values that no weight gives.
    """
    file = MappedFile(path)
    if file.size < _HEADER.size:
        raise CheckpointError(path, f"is truncated: {file.size} bytes, but the header has {_HEADER.size}")
    magic, version, vocab_size, width, num_layers, code = _HEADER.unpack_from(file.bytes)
    if magic != int.from_bytes(MAGIC, "little"):
        raise CheckpointError(path, f"begins with {file.bytes[:4]!r}, but a rwkv.cpp file with {MAGIC!r}")
    if version not in _FORMATS:
        raise CheckpointError(path, f"is of rwkv.cpp format {version}; the formats 100 and 101 are read")
    _dtype(code, path, None)
    raw = _read_tensors(file)
    _check_header(raw, (vocab_size, width, num_layers), path)
    undo = _UNDO[_generation(raw)]
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in raw.items():
        leaf = name.split(".", 2)[-1]
        if leaf == "att.x_rwkvag" and len(tensor) == 6:
            prefix = name.removesuffix("rwkvag")
            tensors |= {f"{prefix}{letter}": row for letter, row in zip("rwkvag", tensor, strict=True)}
        elif leaf in undo:
            try:
                tensors[name] = undo[leaf](tensor)
            except ValueError as error:
                raise CheckpointError(path, str(error), tensor=name) from error
        else:
            tensors[name] = tensor
    return tensors


def _dtype(code: int, path: str | Path, tensor: str | None) -> np.dtype:
    if code in _QUANTIZED:
        raise CheckpointError(
            path,
            f"is quantized ({_QUANTIZED[code]}), which is not read; convert the F32 or F16 file",
            tensor=tensor,
        )
    if code not in _DTYPES:
        raise CheckpointError(
            path, f"has the unknown dtype {code}; expected 0 (F32) or 1 (F16)", tensor=tensor
        )
    return DTYPES[_DTYPES[code]]


def _read_tensors(file: MappedFile) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    offset = _HEADER.size
    last = None
    while offset < file.size:
        try:
            num_axes, name_length, code = _TENSOR.unpack_from(file.bytes, offset)
            offset += _TENSOR.size
            if not (1 <= num_axes <= 4 and 1 <= name_length <= 256):
                raise CheckpointError(
                    file.path,
                    f"is broken at byte {offset}, after tensor {last!r}: {num_axes} axes and a name of "
                    f"{name_length} bytes",
                )
            shape = struct.unpack_from(f"<{num_axes}i", file.bytes, offset)[::-1]
            offset += 4 * num_axes
            (encoded,) = struct.unpack_from(f"<{name_length}s", file.bytes, offset)
            offset += name_length
            name = encoded.decode()
        except (struct.error, UnicodeDecodeError) as error:
            raise CheckpointError(
                file.path, f"is truncated or broken at byte {offset}, after tensor {last!r}: {error}"
            ) from error
        if min(shape) < 1 or name in tensors:
            raise CheckpointError(
                file.path, f"has shape {shape}, or is there twice; the file is broken", tensor=name
            )
        dtype = _dtype(code, file.path, name)
        tensors[name] = file.array(offset, dtype, shape, tensor=name)
        offset += tensors[name].nbytes
        last = name
    return tensors


def _check_header(tensors: dict[str, np.ndarray], sizes: tuple[int, int, int], path: str | Path) -> None:
    vocab_size, width, num_layers = sizes
    embedding = tensors.get("emb.weight")
    if embedding is not None and embedding.shape != (vocab_size, width):
        raise CheckpointError(
            path,
            f"has shape {embedding.shape}, but the header says {(vocab_size, width)}",
            tensor="emb.weight",
        )
    first_norm = "blocks.{}.ln1.weight"
    found = 0
    while first_norm.format(found) in tensors:
        found += 1
    if found != num_layers:
        raise CheckpointError(
            path, f"has {found} layers, but its header says {num_layers}; the file is truncated or broken"
        )


def _generation(tensors: dict[str, np.ndarray]) -> str:
    if "blocks.0.att.k_k" in tensors:
        return "7"
    if "blocks.0.att.time_maa_x" in tensors:
        return "6"
    return "5" if "blocks.0.att.ln_x.weight" in tensors else "4"


# float32 rounds exp(-exp(w)) to 1 above the one, and to 0 below the other.
_BELOW_ONE = 1 - 2.0**-26
_ABOVE_ZERO = 2.0**-151


def _within(tensor: np.ndarray, low: float, high: float) -> np.ndarray:
    if not ((tensor >= low) & (tensor <= high)).all():
        raise ValueError(f"holds a value outside {low:g} to {high:g}, which no weight gives")
    return tensor.astype(np.float64)


def _undo_decay_4(tensor: np.ndarray) -> np.ndarray:
    """w from -exp(w)."""
    rate = -_within(tensor, -np.inf, 0)
    return np.log(np.clip(rate, _ABOVE_ZERO, np.finfo(np.float32).max)).astype(np.float32)


def _undo_decay_5(tensor: np.ndarray) -> np.ndarray:
    """w from exp(-exp(w)): [H, K] from [H, K, 1], [H, 1] from [H, 1, 1]."""
    decay = np.clip(_within(tensor, 0, 1), _ABOVE_ZERO, _BELOW_ONE)
    exponent = np.log(-np.log(decay)).astype(np.float32)
    return exponent.reshape(exponent.shape[:2])


def _undo_first_5(tensor: np.ndarray) -> np.ndarray:
    """u from exp(u)."""
    first = np.clip(_within(tensor, 0, np.inf), _ABOVE_ZERO, np.finfo(np.float32).max)
    return np.log(first).astype(np.float32)


def _per_head(tensor: np.ndarray) -> np.ndarray:
    """[H, K] from [H, K, 1]; of a single head rwkv.cpp keeps no axis, which leaves [K, 1]."""
    if tensor.ndim < 2 or tensor.shape[-1] != 1:
        raise ValueError(f"has shape {tensor.shape}, expected a last axis of length 1")
    return tensor.reshape(tensor.shape[:-1] if tensor.ndim > 2 else (1, -1))


def _flat(tensor: np.ndarray) -> np.ndarray:
    return tensor.reshape(-1)


def _transposed(tensor: np.ndarray) -> np.ndarray:
    if tensor.ndim < 2:
        raise ValueError(f"has shape {tensor.shape}, expected a matrix")
    return np.ascontiguousarray(tensor.swapaxes(-1, -2))


# By generation and the tensor's name within its block: what brings the official tensor back.
_UNDO: dict[str, dict[str, Callable[[np.ndarray], np.ndarray]]] = {
    "4": {"att.time_decay": _undo_decay_4},
    "5": {
        "att.time_decay": _undo_decay_5,
        "att.time_first": _undo_first_5,
        "att.time_faaaa": _per_head,
    },
    "6": {
        "att.time_decay": _flat,
        "att.time_faaaa": _per_head,
        "att.time_maa_w1": _transposed,
        "att.time_maa_w2": _transposed,
        "att.time_decay_w1": _transposed,
        "att.time_decay_w2": _transposed,
    },
    "7": {f"att.{letter}{number}": _transposed for letter in "wavg" for number in "12"},
}
