"""The ``.safetensors`` format: an 8-byte length, a JSON header of that length, then the tensors' bytes.

Reading leaves the header to the ``safetensors`` package, which checks that the tensors fill the file without
gaps, and maps the data. Writing streams each tensor to the file; the package's own writer takes a path and
would not let the old file stay until the new one is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from rookery.checkpoints.checkpoint import DTYPES
from rookery.checkpoints.mapped_file import MappedFile
from rookery.checkpoints.quantized import Weight, dense
from rookery.errors import CheckpointError

__all__ = ["read_safetensors", "write_safetensors"]

_DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Bytes of a number of other dtypes, to pass over what is no weight.
_OTHER_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "U16": 2,
    "I16": 2,
    "U32": 4,
    "I32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
_CODES = {DTYPES[name]: code for code, name in _DTYPE_NAMES.items()}


def read_safetensors(
    path: str | Path, *, ignore: Callable[[str], bool] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a file, as read-only views of it, and its metadata.

    Args:
        ignore: says of a tensor's name whether to pass over it, whatever it is.

    Raises:
        CheckpointError: the file is broken, or a tensor has a dtype that weights do not have.
    """
    file = MappedFile(path)
    try:
        with safe_open(str(path), framework="numpy") as header:
            metadata = header.metadata() or {}
            # In the order of their data, which fills the file: the package checks that.
            layout = [(name, header.get_slice(name)) for name in header.offset_keys()]
            specs = [(name, part.get_dtype(), tuple(part.get_shape())) for name, part in layout]
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(path, f"is truncated or no safetensors file: {error}") from error
    offset = 8 + int.from_bytes(file.bytes[:8], "little")
    tensors = {}
    for name, code, shape in specs:
        if ignore is not None and ignore(name) and code in _OTHER_BYTES:
            offset += prod(shape) * _OTHER_BYTES[code]
            continue
        if code not in _DTYPE_NAMES:
            raise CheckpointError(
                path,
                f"has dtype {code}, but weights are {', '.join(_DTYPE_NAMES)}",
                tensor=name,
            )
        dtype = DTYPES[_DTYPE_NAMES[code]]
        if ignore is None or not ignore(name):
            tensors[name] = file.array(offset, dtype, shape, tensor=name)
        offset += prod(shape) * dtype.itemsize
    return tensors, metadata


def write_safetensors(file: BinaryIO, tensors: Mapping[str, Weight], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata to an open file, one tensor at a time; blocks as float32."""
    # Wide dtypes first, so that every tensor is aligned to its item size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.size * tensor.dtype.itemsize
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little"))
    file.write(encoded)
    for _, tensor in ordered:
        # Through bytes: numpy offers no buffer of a bfloat16 array.
        file.write(np.ascontiguousarray(dense(tensor)).reshape(-1).view(np.uint8).data)
