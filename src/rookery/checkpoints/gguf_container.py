"""The GGUF container: metadata and named tensors, read from a mapped file and written to a stream.

    "GGUF", uint32 version (2 or 3), uint64 tensors, uint64 entries of metadata
    each entry:   string key, uint32 type, value;   an array is uint32 type, uint64 count, values
    each tensor:  string name, uint32 axes, uint64 lengths (the fastest first), uint32 type, uint64 offset
    padding to the alignment, then the tensors' data, each at its offset, padded to the alignment

A string is a uint64 length and UTF-8. Everything is little-endian; the alignment is the entry
``general.alignment``, or 32.

The package ``gguf`` reads the container too, but takes 1.8 s for a file with the World vocabulary of 65536
strings. Here arrays stay in the file until they are asked for. Nothing of a file is believed: every length is
checked against the bytes that are left, and tensors may not overlap, so that what is made of a file is never
larger than a small multiple of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rookery.checkpoints.gguf_types import CODES, NAMES, TYPES, BlockType
from rookery.checkpoints.mapped_file import MappedFile
from rookery.errors import CheckpointError

__all__ = ["MAGIC", "ArrayEntry", "GGUFFile", "TensorEntry", "TensorToWrite", "write_container"]

MAGIC = b"GGUF"

_VERSIONS = (2, 3)
_WRITTEN_VERSION = 3
_ALIGNMENT = 32

# More than any model has; a file that says so is broken.
_MOST_ENTRIES = 1 << 16
_MOST_TENSORS = 1 << 16
_MOST_STRINGS = 1 << 22
_LONGEST_KEY = (1 << 16) - 1
_LARGEST_ALIGNMENT = 1 << 16

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

# Types of metadata, by their code: the numbers, and three that are not.
_NUMBERS = ("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", None, None, "<u8", "<i8", "<f8")
_STRING, _ARRAY = 8, 9
_BOOL = 7


@dataclass(frozen=True)
class ArrayEntry:
    """An array of the metadata, still in the file."""

    code: int
    """The type of its values."""

    count: int
    start: int
    """The byte where its values begin."""

    end: int
    """The byte after them."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies."""

    kind: BlockType
    shape: tuple[int, ...]
    """As numpy has it: the fastest axis last."""

    offset: int
    """From the beginning of the file."""

    nbytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row along the last axis."""
        return self.shape[-1] // self.kind.block * self.kind.size


class GGUFFile:
    """A mapped GGUF file, with every length and offset checked.

    Attributes:
        metadata: key -> a number, a text, or an ``ArrayEntry``.
        tensors: name -> where it lies.

    Raises:
        CheckpointError: the file is truncated or broken, or has a type that is not read.
    """

    def __init__(self, path: str | Path):
        self.file = MappedFile(path)
        self.path = self.file.path
        self._at = 0
        self._what = "its header"
        if self._take(4) != MAGIC:
            raise self._broken(f"begins with {self.file.bytes[:4]!r}, but a GGUF file with {MAGIC!r}")
        self._check_version(self._u32())
        num_tensors, num_entries = self._u64(), self._u64()
        if num_tensors > _MOST_TENSORS or num_entries > _MOST_ENTRIES:
            raise self._broken(f"says it has {num_tensors} tensors and {num_entries} entries of metadata")
        self.metadata: dict[str, Any] = {}
        for index in range(num_entries):
            self._read_entry(index)
        raw = [self._read_tensor(index) for index in range(num_tensors)]
        self.tensors = self._placed(raw)

    def strings(self, entry: ArrayEntry) -> Iterator[bytes]:
        """The values of an array of texts, as the bytes that are there."""
        data, at = self.file.bytes, entry.start
        for _ in range(entry.count):
            length = int.from_bytes(data[at : at + 8], "little")
            at += 8
            yield data[at : at + length]
            at += length

    def rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows of a tensor along its last axis, as raw bytes [last - first, bytes of a row]."""
        entry = self.tensors[name]
        start = entry.offset + first * entry.row_bytes
        return self.file.array(start, np.dtype(np.uint8), (last - first, entry.row_bytes), tensor=name)

    def _check_version(self, version: int) -> None:
        if version in _VERSIONS:
            return
        if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
            raise self._broken("is a GGUF file of a big-endian machine, which is not read")
        raise self._broken(f"is of GGUF version {version}; the versions 2 and 3 are read")

    def _read_entry(self, index: int) -> None:
        self._what = f"entry {index} of its metadata"
        key = self._text(_LONGEST_KEY)
        self._what = f"the metadata {key!r}"
        if key in self.metadata:
            raise self._broken(f"has the metadata {key!r} twice")
        self.metadata[key] = self._value(self._u32())

    def _value(self, code: int) -> Any:
        if code == _STRING:
            return self._text(self.file.size)
        if code == _ARRAY:
            return self._array()
        if code == _BOOL:
            return self._take(1) != b"\0"
        dtype = self._number(code)
        return np.frombuffer(self._take(dtype.itemsize), dtype)[0].item()

    def _array(self) -> ArrayEntry:
        code, count = self._u32(), self._u64()
        start = self._at
        if code == _STRING:
            if count > _MOST_STRINGS:
                raise self._broken(f"says that {self._what} is an array of {count} texts")
            self._skip_strings(count)
        else:
            self._skip(count * self._number(code).itemsize)
        return ArrayEntry(code, count, start, self._at)

    def _skip_strings(self, count: int) -> None:
        # 65536 of them in every model of the World tokenizer: the loop does no more than it must.
        data, at, size = self.file.bytes, self._at, self.file.size
        for _ in range(count):
            at += 8 + int.from_bytes(data[at : at + 8], "little")
            if at > size:
                raise self._truncated()
        self._at = at

    def _number(self, code: int) -> np.dtype:
        name = _NUMBERS[code] if code < len(_NUMBERS) else None
        if name is None:
            raise self._broken(f"has values of the unknown type {code} in {self._what}")
        return np.dtype(name)

    def _read_tensor(self, index: int) -> tuple[str, tuple[int, ...], int, int]:
        self._what = f"tensor {index}"
        name = self._text(_LONGEST_KEY)
        self._what = f"tensor {name!r}"
        axes = self._u32()
        if not 1 <= axes <= 4:
            raise self._broken(f"has {axes} axes, expected 1 to 4", tensor=name)
        shape = tuple(self._u64() for _ in range(axes))[::-1]
        return name, shape, self._u32(), self._u64()

    def _placed(self, raw: list[tuple[str, tuple[int, ...], int, int]]) -> dict[str, TensorEntry]:
        alignment = self.metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= _LARGEST_ALIGNMENT:
            raise self._broken(f"has the alignment {alignment!r}, expected 1 to {_LARGEST_ALIGNMENT}")
        data = self._at + -self._at % alignment
        tensors: dict[str, TensorEntry] = {}
        for name, shape, code, offset in raw:
            if name in tensors:
                raise self._broken("is there twice", tensor=name)
            tensors[name] = self._entry(name, shape, code, data + offset)
        ends = 0
        for name, entry in sorted(tensors.items(), key=lambda item: item[1].offset):
            if entry.offset < ends:
                raise self._broken("overlaps with another tensor; the file is broken", tensor=name)
            ends = entry.offset + entry.nbytes
        return tensors

    def _entry(self, name: str, shape: tuple[int, ...], code: int, offset: int) -> TensorEntry:
        kind = TYPES.get(code)
        if kind is None:
            readable = ", ".join(each.name for each in TYPES.values())
            raise self._broken(
                f"is of type {NAMES.get(code, code)}, which is not read; {readable} are", tensor=name
            )
        count = prod(shape)
        if min(shape) < 1 or shape[-1] % kind.block:
            raise self._broken(f"has shape {shape}, which is none of type {kind.name}", tensor=name)
        nbytes = count // kind.block * kind.size
        if offset + nbytes > self.file.size:
            raise self._broken(
                f"its data lies in bytes {offset} to {offset + nbytes}, but the file ends at "
                f"{self.file.size}: truncated",
                tensor=name,
            )
        return TensorEntry(kind, shape, offset, nbytes)

    def _take(self, count: int) -> bytes:
        start = self._at
        self._skip(count)
        return self.file.bytes[start : self._at]

    def _skip(self, count: int) -> None:
        if count > self.file.size - self._at:
            raise self._truncated()
        self._at += count

    def _u32(self) -> int:
        return _U32.unpack(self._take(4))[0]

    def _u64(self) -> int:
        return _U64.unpack(self._take(8))[0]

    def _text(self, longest: int) -> str:
        length = self._u64()
        if length > longest:
            raise self._truncated()
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._broken(f"has text that is no UTF-8 in {self._what}: {error}") from error

    def _truncated(self) -> CheckpointError:
        return self._broken(f"is truncated or broken at byte {self._at} of {self.file.size}, in {self._what}")

    def _broken(self, problem: str, *, tensor: str | None = None) -> CheckpointError:
        return CheckpointError(self.path, problem, tensor=tensor)


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor of a file that is to be written."""

    type: str
    """GGML's name."""

    shape: tuple[int, ...]
    """The fastest axis last."""

    data: Callable[[], Iterable[np.ndarray]]
    """Its data, made when it is written, in one array or several: at most one tensor is in memory."""

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        kind = TYPES[CODES[self.type]]
        return prod(self.shape) // kind.block * kind.size


def write_container(
    file: BinaryIO, metadata: Mapping[str, Any], tensors: Mapping[str, TensorToWrite]
) -> None:
    """Write a GGUF file to an open one.

    Args:
        file: an open file, at its beginning.
        metadata: key -> bool, str, int (uint32), float (float32), or a list: of bytes (texts) or of int
            (int32).
        tensors: in the order of the file.
    """
    parts = [MAGIC, _U32.pack(_WRITTEN_VERSION), _U64.pack(len(tensors)), _U64.pack(len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key.encode()), _encoded(value)]
    offset = 0
    for name, tensor in tensors.items():
        lengths = tensor.shape[::-1]
        parts += [_string(name.encode()), _U32.pack(len(lengths)), *map(_U64.pack, lengths)]
        parts += [_U32.pack(CODES[tensor.type]), _U64.pack(offset)]
        offset += tensor.nbytes + -tensor.nbytes % _ALIGNMENT
    header = b"".join(parts)
    file.write(header + b"\0" * (-len(header) % _ALIGNMENT))
    for tensor in tensors.values():
        for part in tensor.data():
            # Through bytes: numpy offers no buffer of a bfloat16 array.
            file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        file.write(b"\0" * (-tensor.nbytes % _ALIGNMENT))


def _string(data: bytes) -> bytes:
    return _U64.pack(len(data)) + data


def _encoded(value: Any) -> bytes:
    """The type and the value."""
    if isinstance(value, bool):
        return _U32.pack(_BOOL) + bytes([value])
    if isinstance(value, str):
        return _U32.pack(_STRING) + _string(value.encode())
    if isinstance(value, int):
        return _U32.pack(4) + _U32.pack(value)
    if isinstance(value, float):
        return _U32.pack(6) + struct.pack("<f", value)
    head = _U32.pack(_ARRAY)
    if value and isinstance(value[0], bytes):
        return head + _U32.pack(_STRING) + _U64.pack(len(value)) + b"".join(map(_string, value))
    return head + _U32.pack(5) + _U64.pack(len(value)) + np.array(value, "<i4").tobytes()
