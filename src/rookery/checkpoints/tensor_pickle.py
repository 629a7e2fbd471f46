"""The part of pickle that ``torch.save`` uses for tensors, read and written without pickle.

Reading is a small machine of its own: opcodes push values and build containers, and that is all they can
do. Nothing named in a file is ever imported or called, so there is no code that a file could run. The names
that a file may hold are those of tables below; any other is refused.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["StorageRef", "TensorRef", "UnreadablePickleError", "dump_tensors", "load_tensors"]

# torch's storage classes, and the dtype of what they hold.
_STORAGES: dict[str, str] = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


class UnreadablePickleError(ValueError):
    """A pickle that is broken, or uses what tensors in plain containers do not need."""


@dataclass(frozen=True)
class StorageRef:
    """A flat run of numbers in an archive."""

    dtype: str
    """Name of the dtype, such as ``"bfloat16"``."""

    key: str
    """Name of the archive's entry under ``data/``."""

    size: int
    """How many numbers."""


@dataclass(frozen=True)
class TensorRef:
    """A tensor as a view of a storage; offset and strides count numbers, not bytes."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """A name in the file. It is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Mark:
    """Where a run of stacked values begins."""


_MARK = _Mark()


def load_tensors(data: bytes) -> Any:
    """Read a pickle; tensors come back as ``TensorRef``, everything else as plain values.

    Raises:
        UnreadablePickleError: the pickle is broken, or uses a name or an opcode that tensors do not need.
    """
    machine = _Machine()
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.result()
            step = _STEPS.get(opcode.name)
            if step is None:
                raise UnreadablePickleError(
                    f"uses the pickle opcode {opcode.name} at byte {position}, which tensors do not need"
                )
            step(machine, argument)
    except UnreadablePickleError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UnreadablePickleError(f"is a broken pickle: {type(error).__name__}: {error}") from error
    raise UnreadablePickleError("is a pickle without an end")


class _Machine:
    """A stack of values and a memo, as pickle has them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise IndexError("the stack is empty")
        return value

    def pop_to_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"expected a {kind.__name__}, found {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def pop_tuple(self, size: int) -> None:
        values = [self.pop() for _ in range(size)]
        self.push(tuple(values[::-1]))

    def result(self) -> Any:
        if len(self.stack) != 1:
            raise UnreadablePickleError(f"is a broken pickle: {len(self.stack)} values are left on its stack")
        return self.pop()

    def memoize(self, index: int) -> None:
        if self.stack[-1] is _MARK:
            raise IndexError("the stack is empty")
        self.memo[index] = self.stack[-1]

    def push_global(self, module: str, name: str) -> None:
        found = _Global(module, name)
        if found not in _CALLS and not (module == "torch" and name in _STORAGES):
            raise UnreadablePickleError(
                f"names {found}, which is neither a tensor nor a plain container; the file is refused, and "
                "nothing of it was run. If you trust it, save its tensors alone by the program that wrote it"
            )
        self.push(found)

    def push_global_of_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise TypeError("a global without a name")
        self.push_global(module, name)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(arguments, tuple) or not isinstance(function, _Global) or function not in _CALLS:
            raise TypeError(f"{function} cannot be applied")
        self.push(_CALLS[function](*arguments))

    def build(self) -> None:
        """Drop attributes of a dictionary, such as a state dict's ``_metadata``: weights are not there."""
        self.pop()
        self.top(dict)

    def set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise TypeError("a key without a value")
        self.top(dict).update(zip(values[::2], values[1::2], strict=True))

    def push_persistent(self) -> None:
        reference = self.pop()
        kind, storage, key, _location, size = reference
        if kind != "storage" or not isinstance(storage, _Global) or storage.name not in _STORAGES:
            raise TypeError(f"{kind!r} of {storage} is no storage")
        self.push(StorageRef(_STORAGES[storage.name], str(key), _natural(size)))


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no size")
    return value


def _ordered_dict(items: Iterable[Any] = ()) -> dict[Any, Any]:
    return dict(items)


def _rebuild_tensor(
    storage: StorageRef, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> TensorRef:
    if not isinstance(storage, StorageRef):
        raise TypeError("a tensor without a storage")
    shape, strides = tuple(map(_natural, shape)), tuple(map(_natural, strides))
    if len(shape) != len(strides):
        raise TypeError(f"shape {shape} with strides {strides}")
    return TensorRef(storage, _natural(offset), shape, strides)


def _rebuild_parameter(tensor: TensorRef, *_: Any) -> TensorRef:
    if not isinstance(tensor, TensorRef):
        raise TypeError("a parameter without a tensor")
    return tensor


_ORDERED_DICT = _Global("collections", "OrderedDict")
_REBUILD_TENSOR = _Global("torch._utils", "_rebuild_tensor_v2")
_REBUILD_PARAMETER = _Global("torch._utils", "_rebuild_parameter")

# What a file may ask to be applied, and what is done in its place.
_CALLS: dict[_Global, Callable[..., Any]] = {
    _ORDERED_DICT: _ordered_dict,
    _REBUILD_TENSOR: _rebuild_tensor,
    _REBUILD_PARAMETER: _rebuild_parameter,
}

_Step = Callable[[_Machine, Any], None]


def _nothing(machine: _Machine, argument: Any) -> None:
    pass


def _same(*names: str, step: _Step) -> dict[str, _Step]:
    return dict.fromkeys(names, step)


_STEPS: dict[str, _Step] = {
    **_same("PROTO", "FRAME", step=_nothing),
    **_same("MARK", step=lambda m, _: m.push(_MARK)),
    **_same(
        *("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("STRING", "SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
        step=lambda m, value: m.push(value),
    ),
    **_same("NONE", step=lambda m, _: m.push(None)),
    **_same("NEWTRUE", step=lambda m, _: m.push(True)),
    **_same("NEWFALSE", step=lambda m, _: m.push(False)),
    **_same("EMPTY_TUPLE", step=lambda m, _: m.push(())),
    **_same("TUPLE1", step=lambda m, _: m.pop_tuple(1)),
    **_same("TUPLE2", step=lambda m, _: m.pop_tuple(2)),
    **_same("TUPLE3", step=lambda m, _: m.pop_tuple(3)),
    **_same("TUPLE", step=lambda m, _: m.push(tuple(m.pop_to_mark()))),
    **_same("EMPTY_LIST", step=lambda m, _: m.push([])),
    **_same("LIST", step=lambda m, _: m.push(m.pop_to_mark())),
    **_same("EMPTY_DICT", step=lambda m, _: m.push({})),
    **_same("APPEND", step=lambda m, _: _append(m, [m.pop()])),
    **_same("APPENDS", step=lambda m, _: _append(m, m.pop_to_mark())),
    **_same("SETITEM", step=lambda m, _: m.set_items([m.pop(), m.pop()][::-1])),
    **_same("SETITEMS", step=lambda m, _: m.set_items(m.pop_to_mark())),
    **_same("PUT", "BINPUT", "LONG_BINPUT", step=lambda m, index: m.memoize(index)),
    **_same("MEMOIZE", step=lambda m, _: m.memoize(len(m.memo))),
    **_same("GET", "BINGET", "LONG_BINGET", step=lambda m, index: m.push(m.memo[index])),
    **_same("GLOBAL", step=lambda m, names: m.push_global(*names.split(" ", 1))),
    **_same("STACK_GLOBAL", step=lambda m, _: m.push_global_of_stack()),
    **_same("REDUCE", step=lambda m, _: m.reduce()),
    **_same("BUILD", step=lambda m, _: m.build()),
    **_same("BINPERSID", step=lambda m, _: m.push_persistent()),
}


def _append(machine: _Machine, values: list[Any]) -> None:
    machine.top(list).extend(values)


def dump_tensors(tensors: dict[str, TensorRef]) -> bytes:
    """The pickle (protocol 2) of a dictionary of tensors, as ``torch.save`` writes it."""
    storage_names = {dtype: name for name, dtype in _STORAGES.items()}
    parts = [b"\x80\x02}("]
    for name, tensor in tensors.items():
        storage = tensor.storage
        class_ = _Global("torch", storage_names[storage.dtype])
        parts += [_text(name), _named(_REBUILD_TENSOR), b"("]
        parts += [b"(", _text("storage"), _named(class_), _text(storage.key), _text("cpu")]
        parts += [_integer(storage.size), b"tQ", _integer(tensor.offset)]
        parts += [b"(", *map(_integer, tensor.shape), b"t(", *map(_integer, tensor.strides), b"t"]
        # requires_grad = False, and no hooks.
        parts += [b"\x89", _named(_ORDERED_DICT), b")R", b"tR"]
    return b"".join([*parts, b"u."])


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _named(value: _Global) -> bytes:
    return f"c{value.module}\n{value.name}\n".encode()


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)
