"""A file mapped into memory, and arrays that are views of it."""

from __future__ import annotations

import mmap
import os
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from rookery.errors import CheckpointError

__all__ = ["MappedFile"]


class MappedFile:
    """A file's bytes, read-only, mapped: pages come from the disk when they are used, and are never copied.

    Arrays keep the mapping alive; there is nothing to close.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or it is empty.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise CheckpointError(path, "is empty")
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error

    def array(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...], *, tensor: str) -> np.ndarray:
        """The array whose data begins at byte ``offset``, row by row; a copy only where it is not aligned.

        Raises:
            CheckpointError: the data lies beyond the end of the file.
        """
        count = prod(shape)
        end = offset + count * dtype.itemsize
        if offset < 0 or end > self.size:
            raise CheckpointError(
                self.path,
                f"its data lies in bytes {offset} to {end}, but the file ends at {self.size}: truncated",
                tensor=tensor,
            )
        if count == 0:
            return np.empty(shape, dtype)
        flat = np.frombuffer(self.bytes, dtype, count, offset)
        if offset % dtype.itemsize:
            flat = flat.copy()
        return flat.reshape(shape)
