"""A checkpoint's tensors as the engine takes them: matrices packed, vectors float32, the embedding as it is.

The engine's names are the official ones without ``.weight``, but for vectors of which something is computed
here, once: ``shift_k`` is how much of ``k``'s input is the token before (RWKV-4 and 5 store the share of the
present one), ``decay`` and ``log_decay`` are what ``time_decay`` stands for.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rookery.checkpoints import Checkpoint, Quantized, Weight, dense, dtype_name
from rookery.checkpoints.checkpoint import checked_tensors
from rookery.config import ModelConfig
from rookery.errors import CheckpointError
from rookery.native import _engine

__all__ = ["MATRIX_TYPES", "EngineWeights", "check_whole", "pack"]

MATRIX_TYPES = ("float32", "bfloat16", "q8", "q4")
"""Types that matrices may have in the engine."""

# Of a matrix that keeps its type, by what the checkpoint has.
_TYPE_OF_SOURCE = {
    "float32": "float32",
    "float16": "bfloat16",
    "bfloat16": "bfloat16",
    "q8_0": "q8",
    "q4_0": "q4",
}

# Inputs whose shift depends on the data in RWKV-6: one tensor holds a matrix for each.
_PARTS = 5


@dataclass(frozen=True, kw_only=True)
class EngineWeights:
    """What ``_engine.Model`` is made of."""

    vectors: dict[str, np.ndarray]
    """Float32, flat."""

    matrices: dict[str, _engine.Matrix]
    """By name."""

    embedding: np.ndarray
    """The embedding's bytes, uint8, flat: a view of the checkpoint's own array."""

    embedding_type: str
    """What they are: "float32", "float16", "bfloat16", "q8_0" or "q4_0"."""


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    """A matrix of one layer."""

    name: str
    """In the engine, within its layer."""

    tensor: str
    """In the checkpoint, within its layer."""

    part: int | None = None
    """Which one, where the tensor holds several."""

    transposed: bool = False
    """Whether official files have it as [inputs, outputs]."""

    sparse: bool = False
    """Whether inputs are mostly zero, so that columns may be skipped."""


def _matrices(*names: str) -> list[_Matrix]:
    return [_Matrix(name=name, tensor=f"{name}.weight", sparse=name == "ffn.value") for name in names]


def _low_rank(*names: str) -> list[_Matrix]:
    return [_Matrix(name=name, tensor=name, transposed=True) for name in names]


def _parts(name: str) -> list[_Matrix]:
    return [_Matrix(name=f"{name}.{i}", tensor=name, part=i, transposed=True) for i in range(_PARTS)]


_RKV = _matrices("att.receptance", "att.key", "att.value")
_END = _matrices("att.output", "ffn.key", "ffn.value")
_END_GATED = _matrices("att.output", "ffn.key", "ffn.value", "ffn.receptance")
_GATE = _matrices("att.gate")

# The matrices of a layer in the order in which a step reads them.
_MATRICES: dict[str, list[_Matrix]] = {
    "4": _RKV + _END_GATED,
    "5.0": _RKV + _END_GATED,
    "5.1": _RKV + _GATE + _END_GATED,
    "5.2": _RKV + _GATE + _END_GATED,
    "6": _parts("att.time_maa_w1")
    + _parts("att.time_maa_w2")
    + _RKV
    + _GATE
    + _low_rank("att.time_decay_w1", "att.time_decay_w2")
    + _END_GATED,
    "7": _RKV + _low_rank(*(f"att.{letter}{i}" for i in "12" for letter in "wagv")) + _END,
}

Function = Callable[[np.ndarray, ModelConfig], np.ndarray]


def _as_it_is(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    return x


def _previous(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    return 1 - x


def _log_decay(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    return -np.exp(x)


def _decay(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    return np.exp(-np.exp(x))


def _of_heads(function: Function) -> Function:
    """A value for each head becomes one for each of its channels."""
    return lambda x, config: np.repeat(function(x, config), config.head_size)


def _bonus_of_heads(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    return np.repeat(np.exp(x), config.head_size)


_NORMS = [f"{norm}.{part}" for norm in ("ln1", "ln2") for part in ("weight", "bias")]
_HEAD_NORM = ["att.ln_x.weight", "att.ln_x.bias"]

Vectors = dict[str, tuple[str, Function]]


def _same(*names: str) -> Vectors:
    return {name: (name, _as_it_is) for name in names}


def _shifts(pattern: str, letters: str, function: Function, part: str = "att") -> Vectors:
    return {f"{part}.shift_{x}": (f"{part}.{pattern}_{x}", function) for x in letters}


_SHIFTS_5 = _shifts("time_mix", "rkv", _previous) | _shifts("time_mix", "kr", _previous, "ffn")
_HEADS_5 = {
    "att.decay": ("att.time_decay", _of_heads(_decay)),
    "att.bonus": ("att.time_first", _bonus_of_heads),
}
_SHIFT_G = _shifts("time_mix", "g", _previous)

# Name in the engine -> name in the checkpoint, both within a layer, and what is made of it.
_VECTORS: dict[str, Vectors] = {
    "4": _same(*_NORMS)
    | _SHIFTS_5
    | {"att.log_decay": ("att.time_decay", _log_decay), "att.bonus": ("att.time_first", _as_it_is)},
    "5.0": _same(*_NORMS, *_HEAD_NORM) | _SHIFTS_5 | _HEADS_5,
    "5.1": _same(*_NORMS, *_HEAD_NORM) | _SHIFTS_5 | _SHIFT_G | _HEADS_5,
    "5.2": _same(*_NORMS, *_HEAD_NORM)
    | _SHIFTS_5
    | _SHIFT_G
    | {"att.decay": ("att.time_decay", _decay), "att.bonus": ("att.time_faaaa", _as_it_is)},
    "6": _same(*_NORMS, *_HEAD_NORM, "att.time_decay")
    | {"att.bonus": ("att.time_faaaa", _as_it_is)}
    | _shifts("time_maa", "xwkvrg", _as_it_is)
    | _shifts("time_maa", "kr", _as_it_is, "ffn"),
    "7": _same(*_NORMS, *_HEAD_NORM, *(f"att.{name}" for name in ("w0", "a0", "v0", "k_k", "k_a", "r_k")))
    | _shifts("x", "rwkvag", _as_it_is)
    | _shifts("x", "k", _as_it_is, "ffn"),
}

# RWKV-7's first layer has no earlier value to mix in; files may hold these all the same.
_UNUSED = {f"blocks.0.att.v{i}" for i in "012"}


def pack(checkpoint: Checkpoint, *, dtype: str | None, threads: int) -> EngineWeights:
    """Pack the weights of a checkpoint, tensor after tensor.

    What was packed of a mapped file is given back at once, so that memory never holds the weights twice.

    Args:
        dtype: of the matrices, one of ``MATRIX_TYPES``; low-rank ones are "q8" where it is "q4". None: what
            the file has, with float16 as bfloat16, and "q8" for the low-rank matrices of a quantized file.

    Raises:
        CheckpointError: the tensors are not those of the configuration, or the file was cut off since it was
            opened.
    """
    config, tensors = checkpoint.config, checked_tensors(checkpoint, checkpoint.path)
    quantized = any(isinstance(tensor, Quantized) for tensor in tensors.values())
    arena = _engine.Arena()
    matrices: dict[str, _engine.Matrix] = {}
    vectors: dict[str, np.ndarray] = {}

    def take(name: str) -> Weight:
        check_whole(tensors[name], checkpoint.path)
        return tensors[name]

    def add_matrix(row: _Matrix, prefix: str = "") -> None:
        tensor = take(prefix + row.tensor)
        kind = _matrix_type(tensor, dtype, low_rank=row.transposed, quantized=quantized)
        matrices[prefix + row.name] = _packed(arena, _part(tensor, row, config), row, kind, threads)
        if row.part in (None, _PARTS - 1):
            _release(tensor)

    def add_vector(name: str, tensor: str, function: Function) -> None:
        value = dense(take(tensor)).astype(np.float32).reshape(-1)
        # Weights of a broken file may be beyond the functions: the model's logits then say so.
        with np.errstate(over="ignore", invalid="ignore"):
            vectors[name] = np.ascontiguousarray(function(value, config), np.float32)

    for layer in range(config.num_layers):
        prefix = f"blocks.{layer}."
        for row in _MATRICES[config.version]:
            if prefix + row.tensor not in _UNUSED:
                add_matrix(row, prefix)
        for name, (tensor, function) in _VECTORS[config.version].items():
            if prefix + tensor not in _UNUSED:
                add_vector(prefix + name, prefix + tensor, function)
    for name in ("blocks.0.ln0.weight", "blocks.0.ln0.bias", "ln_out.weight", "ln_out.bias"):
        add_vector(name, name, _as_it_is)
    add_matrix(_Matrix(name="head", tensor="head.weight"))
    kind, embedding = _source(take("emb.weight"))
    return EngineWeights(vectors=vectors, matrices=matrices, embedding=embedding, embedding_type=kind)


def check_whole(tensor: Weight, path: Path | None) -> None:
    """Check that the file of which a tensor is a view is still whole: reading beyond its end ends a process.

    Raises:
        CheckpointError: the file is shorter than when it was opened.
    """
    mapping = _mapping(tensor)
    if mapping is not None and mapping.size() < len(mapping):
        raise CheckpointError(
            path, f"was cut off while it was in use: {mapping.size()} of {len(mapping)} bytes are left"
        )


def _mapping(tensor: Weight) -> mmap.mmap | None:
    """The mapped file that a tensor is a view of; None where it has memory of its own."""
    base: object = _array(tensor)
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) else None


def _array(tensor: Weight) -> np.ndarray:
    return tensor.blocks if isinstance(tensor, Quantized) else tensor


def _release(tensor: Weight) -> None:
    """Give back the pages of a mapped file that hold nothing but this tensor: it will not be read again."""
    mapping, array = _mapping(tensor), _array(tensor)
    if mapping is None or not hasattr(mapping, "madvise"):
        return
    whole = memoryview(mapping)
    # What a writable mapping was given is nowhere else.
    if not whole.readonly or not array.flags.c_contiguous:
        return
    begin = array.ctypes.data - np.frombuffer(whole, np.uint8).ctypes.data
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (begin + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        mapping.madvise(mmap.MADV_DONTNEED, first, last - first)


def _matrix_type(tensor: Weight, dtype: str | None, *, low_rank: bool, quantized: bool) -> str:
    if dtype is not None:
        return "q8" if low_rank and dtype == "q4" else dtype
    if isinstance(tensor, Quantized):
        return _TYPE_OF_SOURCE[tensor.kind]
    return "q8" if low_rank and quantized else _TYPE_OF_SOURCE[tensor.dtype.name]


def _part(tensor: Weight, row: _Matrix, config: ModelConfig) -> Weight:
    """One matrix of a tensor that may hold several, [inputs, parts outputs] or [parts, inputs, outputs]."""
    if row.part is None:
        return tensor
    if tensor.ndim == 3:
        return dense(tensor)[row.part]
    outputs = config.mix_rank
    span = slice(row.part * outputs, (row.part + 1) * outputs)
    if isinstance(tensor, Quantized):
        return replace(tensor, shape=(tensor.shape[0], outputs), blocks=tensor.blocks[span])
    return tensor[:, span]


def _packed(arena: _engine.Arena, tensor: Weight, row: _Matrix, kind: str, threads: int) -> _engine.Matrix:
    if isinstance(tensor, Quantized) and tensor.transposed != row.transposed:
        # Blocks along the outputs: no kernel multiplies those.
        tensor = dense(tensor)
    source, data = _source(tensor)
    # Picking columns of 4 bits out gains less than reading from front to back: with 85 % zeros the two take
    # the same time, and with fewer the panels win.
    layout = "columns" if row.sparse and kind != "q4" else "panels"
    rows, columns = tensor.shape[::-1] if row.transposed else tensor.shape
    return _engine.Matrix(
        arena,
        data,
        source=source,
        rows=rows,
        columns=columns,
        type=kind,
        layout=layout,
        # Blocks are of the transpose already.
        transposed=row.transposed and not isinstance(tensor, Quantized),
        threads=threads,
    )


def _source(tensor: Weight) -> tuple[str, np.ndarray]:
    """The type of a tensor's numbers, and their bytes."""
    data = np.ascontiguousarray(_array(tensor)).reshape(-1).view(np.uint8)
    return dtype_name(tensor), data
