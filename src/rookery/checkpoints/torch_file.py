"""The ``.pth`` format: the zip archive of ``torch.save``, read and written without torch.

An archive holds ``ROOT/data.pkl``, which names tensors as views of storages (``tensor_pickle``), and each
storage as an uncompressed entry ``ROOT/data/KEY``. Storages are mapped where they lie in the archive.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.stride_tricks import as_strided

from rookery.checkpoints.checkpoint import DTYPES
from rookery.checkpoints.mapped_file import MappedFile
from rookery.checkpoints.quantized import Weight, dense
from rookery.checkpoints.schema import refuse_other_kinds
from rookery.checkpoints.tensor_pickle import (
    StorageRef,
    TensorRef,
    UnreadablePickleError,
    dump_tensors,
    load_tensors,
)
from rookery.errors import CheckpointError

__all__ = ["LEGACY_MAGIC", "MAGIC", "read_torch", "write_torch"]

MAGIC = b"PK\x03\x04"

# The first pickle of a file that torch wrote before version 1.6.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# As torch aligns storages, so that they can be mapped.
_ALIGNMENT = 64

# A 100-layer model's is under 1 MB.
_LARGEST_PICKLE = 64 << 20

_LOCAL_HEADER = struct.Struct("<4s22x2H")


def read_torch(path: str | Path, *, ignore: Callable[[str], bool] | None = None) -> dict[str, np.ndarray]:
    """The tensors of a dictionary saved by ``torch.save``, as read-only views of the file.

    Args:
        ignore: says of a tensor's name whether to pass over it, whatever it is.

    Raises:
        CheckpointError: the file is broken, names anything but tensors and plain containers, or holds
            something else than a dictionary of tensors.
    """
    file = MappedFile(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _Archive(file, archive).tensors(ignore)
    # What zipfile raises on broken archives; RuntimeError where they are encrypted.
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
        UnicodeDecodeError,
        struct.error,
    ) as error:
        raise CheckpointError(path, f"is truncated or a broken zip archive: {error}") from error


class _Archive:
    """One open archive; storages that tensors share are read once."""

    def __init__(self, file: MappedFile, archive: zipfile.ZipFile):
        self.file = file
        self.path = file.path
        self.archive = archive
        self.entries = {info.filename: info for info in archive.infolist()}
        self.storages: dict[StorageRef, np.ndarray] = {}
        pickles = [name for name in self.entries if name.split("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise CheckpointError(
                self.path, "is a zip archive, but not one of torch.save: there is no data.pkl in it"
            )
        self.root = pickles[0].removesuffix("data.pkl")
        if f"{self.root}constants.pkl" in self.entries:
            raise CheckpointError(self.path, "is a TorchScript archive; save the model's state dict instead")

    def tensors(self, ignore: Callable[[str], bool] | None) -> dict[str, np.ndarray]:
        references = self.references()
        if not isinstance(references, dict):
            raise CheckpointError(
                self.path,
                f"holds a {type(references).__name__}, expected a dictionary of tensors (a state dict)",
            )
        for name, value in references.items():
            if not isinstance(name, str) or not isinstance(value, TensorRef):
                refuse_other_kinds(references, self.path)
                raise CheckpointError(
                    self.path,
                    f"holds a {type(value).__name__} under {name!r}, expected tensors alone; "
                    "save the model's state dict without what surrounds it",
                )
        wanted = references if ignore is None else [name for name in references if not ignore(name)]
        return {name: self.tensor(name, references[name]) for name in wanted}

    def references(self) -> Any:
        name = f"{self.root}data.pkl"
        if self.entries[name].file_size > _LARGEST_PICKLE:
            raise CheckpointError(self.path, f"its data.pkl has {self.entries[name].file_size} bytes")
        try:
            return load_tensors(self.archive.read(name))
        except UnreadablePickleError as error:
            raise CheckpointError(self.path, str(error)) from error

    def tensor(self, name: str, reference: TensorRef) -> np.ndarray:
        storage = self.storage(name, reference.storage)
        shape, strides = reference.shape, reference.strides
        last = reference.offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if min(shape, default=1) < 1 or last >= storage.size or prod(shape) > storage.size:
            raise CheckpointError(
                self.path,
                f"of shape {shape} and strides {strides} at {reference.offset} does not fit into its storage "
                f"of {storage.size} numbers",
                tensor=name,
            )
        flat = storage[reference.offset :]
        view = as_strided(flat, shape, [stride * flat.itemsize for stride in strides], writeable=False)
        return np.ascontiguousarray(view)

    def storage(self, name: str, reference: StorageRef) -> np.ndarray:
        if reference not in self.storages:
            self.storages[reference] = self.read_storage(name, reference)
        return self.storages[reference]

    def read_storage(self, name: str, reference: StorageRef) -> np.ndarray:
        if reference.dtype not in DTYPES:
            raise CheckpointError(
                self.path, f"has dtype {reference.dtype}, but weights are {', '.join(DTYPES)}", tensor=name
            )
        dtype = DTYPES[reference.dtype]
        entry = self.entries.get(f"{self.root}data/{reference.key}")
        expected = reference.size * dtype.itemsize
        if entry is None or entry.file_size != expected:
            held = "is not there" if entry is None else f"has {entry.file_size} bytes"
            raise CheckpointError(
                self.path,
                f"its storage data/{reference.key} {held}, expected {expected} bytes",
                tensor=name,
            )
        if entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1:
            storage = self.file.array(self.data_offset(entry), dtype, (reference.size,), tensor=name)
        else:
            storage = np.frombuffer(self.archive.read(entry), dtype)
        return storage.byteswap() if self.is_big_endian() else storage

    def data_offset(self, entry: zipfile.ZipInfo) -> int:
        """Where an entry's data begins: after its local header, which may differ from the directory's."""
        magic, name_length, extra_length = _LOCAL_HEADER.unpack_from(self.file.bytes, entry.header_offset)
        if magic != MAGIC:
            raise zipfile.BadZipFile(f"no local header at byte {entry.header_offset}")
        return entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length

    def is_big_endian(self) -> bool:
        name = f"{self.root}byteorder"
        return name in self.entries and self.archive.read(name) == b"big"


def write_torch(file: BinaryIO, tensors: Mapping[str, Weight]) -> None:
    """Write tensors to an open file as ``torch.save`` would; ``torch.load(weights_only=True)`` reads them.

    Blocks are written as float32.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    references = {}
    for key, (name, tensor) in enumerate(tensors.items()):
        storage = StorageRef(names[tensor.dtype], str(key), tensor.size)
        strides = tuple(prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim))
        references[name] = TensorRef(storage, 0, tensor.shape, strides)
    with zipfile.ZipFile(file, "w") as archive:
        _write_entry(archive, "data.pkl", dump_tensors(references))
        _write_entry(archive, "byteorder", b"little")
        for key, tensor in enumerate(tensors.values()):
            # Through bytes: numpy offers no buffer of a bfloat16 array.
            data = np.ascontiguousarray(dense(tensor)).reshape(-1).view(np.uint8).data
            _write_entry(archive, f"data/{key}", data)
        _write_entry(archive, "version", b"3\n")


def _write_entry(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    # A fixed date, so that equal models give equal files.
    entry = zipfile.ZipInfo(f"archive/{name}", date_time=(1980, 1, 1, 0, 0, 0))
    entry.file_size = len(data)
    # Always the large form of the header, so that its length does not depend on the data's.
    assert archive.fp is not None
    large_form = 20
    start = archive.fp.tell() + _LOCAL_HEADER.size + len(entry.filename) + large_form + 4
    padding = -start % _ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + b"\0" * padding
    with archive.open(entry, "w", force_zip64=True) as target:
        target.write(data)
