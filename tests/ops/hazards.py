"""Watches what interpreted Triton kernels read and write, for what Triton's interpreter does not show.

The interpreter runs programs one after the other, and each operation for all lanes at once. On a GPU programs
run in any order and at once, and so do the warps of a program between barriers. `watching` reports:

- an address outside of the tensors that the kernel was given,
- a location that one program writes and another one reads or writes,
- a location that a program reads after it wrote it, or writes twice, without a barrier between,
- a location that one lane reads and another one writes afterwards, without a barrier between,
- a location that two lanes of one operation write different numbers to.

A lane is a place in a tile: what a tile of the same shape has there is taken to be of the same thread. So
that it shows in results where a kernel uses what it should not, lanes that a mask excludes read NaN if the
kernel names no other value, and memory that torch allocates without values holds NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton.runtime.interpreter as interpreter
from torch import Tensor
from torch.utils._pytree import tree_leaves

_NOBODY, _SEVERAL = -1, -2

# As the interpreter holds it.
_NAN = {"fp16": np.float16(np.nan), "bf16": np.uint16(0x7FC0), "fp32": np.float32(np.nan)}


class _Memory:
    """One stretch of memory, and which program touched each of its bytes last."""

    def __init__(self, begin: int, end: int):
        self.begin, self.end = begin, end
        self.writer = np.full(end - begin, _NOBODY, dtype=np.int32)
        self.reader = np.full(end - begin, _NOBODY, dtype=np.int32)
        # The number of barriers, of all programs so far, before it was touched, and the lane that read it.
        self.written_at = np.full(end - begin, -1, dtype=np.int32)
        self.read_at = np.full(end - begin, -1, dtype=np.int32)
        self.lane = np.full(end - begin, _NOBODY, dtype=np.int64)


class _Launch:
    def __init__(self, name: str, tensors: list[Tensor]):
        self.name = name
        self.found: dict[str, None] = {}
        self.program = -1
        self.barriers = 0
        self._memories: list[_Memory] = []
        for begin, end in sorted(_extent(tensor) for tensor in tensors if tensor.numel()):
            if self._memories and begin < self._memories[-1].end:
                last = self._memories.pop()
                begin, end = last.begin, max(end, last.end)
            self._memories.append(_Memory(begin, end))

    def found_that(self, what: str) -> None:
        self.found[f"{self.name}: {what}"] = None

    def begin_program(self) -> None:
        self.program += 1
        self.barriers += 1

    def _places(self, addresses: np.ndarray, what: str) -> Iterator[tuple[_Memory, np.ndarray, np.ndarray]]:
        """Each memory that is touched, where, and by which of the lanes."""
        if not len(addresses):
            return
        first, last = addresses.min(), addresses.max()
        for memory in self._memories:
            if memory.begin <= first and last < memory.end:
                yield memory, (addresses - memory.begin).astype(np.int64), np.arange(len(addresses))
                return
        inside = np.zeros(addresses.shape, dtype=bool)
        for memory in self._memories:
            here = (addresses >= memory.begin) & (addresses < memory.end)
            inside |= here
            if here.any():
                yield memory, (addresses[here] - memory.begin).astype(np.int64), np.flatnonzero(here)
        if not inside.all():
            self.found_that(f"{what} outside of its tensors")

    def reads(self, pointers: np.ndarray, mask: np.ndarray) -> None:
        lanes = _lanes(pointers)[mask]
        for memory, places, own in self._places(pointers[mask], "reads"):
            writer = memory.writer[places]
            if ((writer != _NOBODY) & (writer != self.program)).any():
                self.found_that("reads what another program writes")
            if ((writer == self.program) & (memory.written_at[places] == self.barriers)).any():
                self.found_that("reads what it wrote, without a barrier")
            reader, lane = memory.reader[places], memory.lane[places]
            alone = (reader == _NOBODY) | (reader == self.program)
            memory.reader[places] = np.where(alone, self.program, _SEVERAL)
            first = memory.read_at[places] != self.barriers
            memory.lane[places] = np.where(first | (lane == lanes[own]), lanes[own], _SEVERAL)
            # Of lanes that read the same location in this operation, numpy has kept the last.
            memory.lane[places[memory.lane[places] != lanes[own]]] = _SEVERAL
            memory.read_at[places] = self.barriers

    def writes(self, pointers: np.ndarray, mask: np.ndarray, values: np.ndarray) -> None:
        addresses, lanes = pointers[mask], _lanes(pointers)[mask]
        if len(addresses) > 1 and not (addresses[1:] > addresses[:-1]).all():
            _, first, again = np.unique(addresses, return_index=True, return_inverse=True)
            values = np.broadcast_to(values, pointers.shape)[mask]
            values = values.view(f"u{values.itemsize}")
            if (values != values[first][again]).any():
                self.found_that("writes different numbers to one location")
        for memory, places, own in self._places(addresses, "writes"):
            writer, reader = memory.writer[places], memory.reader[places]
            if ((writer != _NOBODY) & (writer != self.program)).any():
                self.found_that("writes what another program writes")
            if ((reader != _NOBODY) & (reader != self.program)).any():
                self.found_that("writes what another program reads")
            if ((writer == self.program) & (memory.written_at[places] == self.barriers)).any():
                self.found_that("writes twice, without a barrier")
            late = memory.read_at[places] == self.barriers
            if (late & (memory.lane[places] != lanes[own])).any():
                self.found_that("writes what another lane reads, without a barrier")
            memory.writer[places] = self.program
            memory.written_at[places] = self.barriers


def _lanes(pointers: np.ndarray) -> np.ndarray:
    """A number for each place of tiles of this shape."""
    shape = [size for size in pointers.shape if size > 1]
    return np.arange(pointers.size).reshape(pointers.shape) + (hash(tuple(shape)) % (1 << 30) << 32)


def _extent(tensor: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


class _Watched:
    """Triton's functions on memory, of which `launch` is told."""

    def __init__(self, functions: Any):
        self._functions = functions
        self.launch: _Launch | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._functions, name)

    def load(self, pointers: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: Any) -> Any:
        assert self.launch is not None
        self.launch.reads(pointers, np.broadcast_to(mask, pointers.shape))
        return self._functions.load(pointers, mask, other, dtype)

    def store(self, pointers: np.ndarray, value: np.ndarray, mask: np.ndarray) -> Any:
        assert self.launch is not None
        self.launch.writes(pointers, np.broadcast_to(mask, pointers.shape), value)
        return self._functions.store(pointers, value, mask)

    def atomic_cas(self, *_: Any) -> Any:
        raise NotImplementedError("a kernel uses atomic operations, for which there are no rules here")

    atomic_rmw = atomic_cas


@contextmanager
def watching() -> Iterator[list[str]]:
    """Watch all kernels that are launched inside.

    Yields:
        What was found, a line for each kind and kernel, in the order in which it was found.
    """
    found: list[str] = []
    watched = _Watched(interpreter._interpreter)
    builder: Any = interpreter.interpreter_builder
    executor, run = interpreter.GridExecutor, interpreter.GridExecutor.__call__
    set_program, barrier, load = builder.set_grid_idx, builder.create_barrier, builder.create_masked_load

    def launch(self: Any, *arguments: Any, **named: Any) -> None:
        tensors = [x for x in tree_leaves((arguments, named)) if isinstance(x, Tensor)]
        watched.launch = _Launch(self.fn.__name__, tensors)
        try:
            run(self, *arguments, **named)
        finally:
            found.extend(line for line in watched.launch.found if line not in found)
            watched.launch = None

    def begin_program(x: int, y: int, z: int) -> None:
        set_program(x, y, z)
        assert watched.launch is not None
        watched.launch.begin_program()

    def wait() -> None:
        barrier()
        assert watched.launch is not None
        watched.launch.barriers += 1

    def masked_load(pointers: Any, mask: Any, other: Any, *options: Any) -> Any:
        element = pointers.get_element_ty()
        if other is None and element.name in _NAN:
            nan = np.full(pointers.data.shape, _NAN[element.name])
            other = interpreter.TensorHandle(nan, element)
        return load(pointers, mask, other, *options)

    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    interpreter._interpreter = watched
    executor.__call__ = launch
    builder.set_grid_idx, builder.create_barrier, builder.create_masked_load = (
        begin_program,
        wait,
        masked_load,
    )
    try:
        yield found
    finally:
        interpreter._interpreter = watched._functions
        executor.__call__ = run
        del builder.set_grid_idx, builder.create_barrier, builder.create_masked_load
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
