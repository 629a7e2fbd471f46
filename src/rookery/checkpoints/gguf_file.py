"""Models in GGUF files, llama.cpp's format and ours for quantized models.

RWKV-6 and 7 files are llama.cpp's own, both ways. Reading gives official names, orientation and shapes:

- ``Q8_0`` and ``Q4_0`` matrices stay blocks (``Quantized``), views of the mapped file;
- ``Q4_1``, ``Q5_0``, ``Q5_1``, ``Q4_K``, ``Q5_K`` and ``Q6_K`` matrices become q8_0, which the engines
  multiply: rounded to 8 bits once more, in memory of at most twice their size;
- vectors are float32; in a file of bfloat16 or float16 matrices they are of the matrices' type again where
  that changes none of them;
- llama.cpp's own conversion divides some RWKV-6 matrices by powers of two (``rescale_every_n_layers``), which
  is undone; ours writes 0 there, and does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rookery.checkpoints.checkpoint import DTYPES, Checkpoint
from rookery.checkpoints.gguf_container import GGUFFile, TensorEntry, TensorToWrite, write_container
from rookery.checkpoints.gguf_names import (
    ARCHITECTURES,
    COPIED_7,
    LERP_FUSED,
    Row,
    lerp_letters,
    names,
)
from rookery.checkpoints.gguf_tokenizer import read_tokenizer, tokenizer_metadata
from rookery.checkpoints.gguf_types import FLOATS, dequantize_rows
from rookery.checkpoints.quantized import BLOCK, Quantized, Weight, dense, quantize_q8_0
from rookery.config import ModelConfig, Version
from rookery.errors import CheckpointError

__all__ = ["read_gguf", "write_gguf"]

_GENERATIONS = {name: generation for generation, name in ARCHITECTURES.items()}

# Weights that are dequantized at a time: 16 MB of float32.
_AT_A_TIME = 1 << 22


def read_gguf(path: str | Path) -> tuple[dict[str, Weight], dict[str, Any] | None]:
    """The tensors of a file under official names, and the specification of its tokenizer.

    Raises:
        CheckpointError: the file is broken, is no RWKV model, or has a type that is not read.
    """
    file = GGUFFile(path)
    return _Reader(file).tensors(), read_tokenizer(file)


class _Reader:
    def __init__(self, file: GGUFFile):
        self.file = file
        self.architecture = file.metadata.get("general.architecture")
        if not isinstance(self.architecture, str) or self.architecture not in _GENERATIONS:
            raise CheckpointError(
                file.path,
                f"is a model of architecture {self.architecture!r}; "
                f"RWKV models have {', '.join(_GENERATIONS)}",
            )
        self.num_layers = self._num_layers()
        self.version: Version = self._version()

    def tensors(self) -> dict[str, Weight]:
        wanted = names(self.version, self.num_layers)
        tensors: dict[str, Weight] = {}
        matrices: set[str] = set()
        used: set[str] = set()
        if self.version == "7":
            # Copies of other tensors, which nothing reads.
            for official in COPIED_7:
                row = wanted.pop(f"blocks.0.{official}")
                used.add(row.name)
        for layer in range(self.num_layers):
            fused = f"blk.{layer}.{LERP_FUSED}"
            letters = lerp_letters(self.version)
            if letters is not None and fused in self.file.tensors:
                used.add(fused)
                for official, values in self._split(fused, *letters).items():
                    tensors[f"blocks.{layer}.{official}"] = values
                    del wanted[f"blocks.{layer}.{official}"]
        for official, row in wanted.items():
            if row.name not in self.file.tensors:
                raise CheckpointError(
                    self.file.path, f"is missing; the file holds {official}", tensor=row.name
                )
            used.add(row.name)
            tensors[official] = self._tensor(official, row)
            if row.is_matrix:
                matrices.add(official)
        surplus = [name for name in self.file.tensors if name not in used]
        if surplus:
            raise CheckpointError(
                self.file.path,
                f"is surplus: a model of architecture {self.architecture!r} has no such tensor",
                tensor=surplus[0],
            )
        return _narrowed(tensors, matrices)

    def _integer(self, name: str, *, required: bool = False) -> int | None:
        key = f"{self.architecture}.{name}"
        value = self.file.metadata.get(key)
        if value is None and not required:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
            raise CheckpointError(self.file.path, f"has {value!r} for {key}, expected a number")
        return value

    def _num_layers(self) -> int:
        matches = (re.match(r"blk\.(\d{1,6})\.", name) for name in self.file.tensors)
        found = len({int(match[1]) for match in matches if match})
        said = self._integer("block_count")
        if said is not None and said != found:
            raise CheckpointError(
                self.file.path, f"has {found} layers, but says {said} for {self.architecture}.block_count"
            )
        return found

    def _version(self) -> Version:
        generation: Any = _GENERATIONS[str(self.architecture)]
        if generation != "5":
            return generation
        sizes = {name: prod(entry.shape) for name, entry in self.file.tensors.items()}
        if "blk.0.time_mix_gate.weight" not in sizes:
            return "5.0"
        per_channel = sizes.get("blk.0.time_mix_decay.weight") == sizes.get("blk.0.time_mix_ln.weight")
        return "5.2" if per_channel else "5.1"

    def _tensor(self, official: str, row: Row) -> Weight:
        entry = self.file.tensors[row.name]
        if row.is_matrix:
            return self._rescaled(official, self._matrix(row, entry))
        values = self._array(row.name, entry).reshape(-1)
        if row.form == "vector":
            return values
        head_size = self._integer("wkv.head_size", required=True)
        if not head_size or values.size % head_size:
            raise CheckpointError(
                self.file.path,
                f"has {values.size} numbers, which are not heads of {head_size}",
                tensor=row.name,
            )
        return values.reshape(-1, head_size)

    def _split(self, name: str, start: str, letters: str) -> dict[str, np.ndarray]:
        values = self._array(name, self.file.tensors[name])
        if values.ndim < 2 or values.shape[0] != len(letters):
            raise CheckpointError(
                self.file.path,
                f"has shape {values.shape}, expected ({len(letters)}, 1, 1, D)",
                tensor=name,
            )
        return {f"{start}{letter}": part.reshape(-1) for letter, part in zip(letters, values, strict=True)}

    def _array(self, name: str, entry: TensorEntry) -> np.ndarray:
        """All numbers of a tensor that is small, as an array."""
        if entry.kind.name in FLOATS:
            return self.file.file.array(entry.offset, FLOATS[entry.kind.name], entry.shape, tensor=name)
        rows = self.file.rows(name, 0, prod(entry.shape[:-1]))
        return dequantize_rows(entry.kind, rows).reshape(entry.shape)

    def _matrix(self, row: Row, entry: TensorEntry) -> Weight:
        transposed = row.form == "transposed"
        axes = 3 if row.name.endswith("time_mix_w2.weight") and self.version == "6" else 2
        if len(entry.shape) != axes:
            raise CheckpointError(
                self.file.path, f"has shape {entry.shape}, expected {axes} axes", tensor=row.name
            )
        if axes == 3 or entry.kind.name in FLOATS:
            array = self._array(row.name, entry)
            return np.ascontiguousarray(array.swapaxes(-1, -2)) if transposed else array
        rows, columns = entry.shape
        kind = "q4_0" if entry.kind.name == "Q4_0" else "q8_0"
        if entry.kind.name in ("Q4_0", "Q8_0"):
            blocks = self.file.rows(row.name, 0, rows)
        else:
            blocks = np.concatenate([quantize_q8_0(part) for part in self._dequantized(row.name, entry)])
        return Quantized(kind, (columns, rows) if transposed else (rows, columns), blocks, transposed)

    def _dequantized(self, name: str, entry: TensorEntry) -> Iterator[np.ndarray]:
        rows, columns = entry.shape
        step = max(1, _AT_A_TIME // columns)
        for first in range(0, rows, step):
            yield dequantize_rows(entry.kind, self.file.rows(name, first, min(first + step, rows)))

    def _rescaled(self, official: str, weight: Weight) -> Weight:
        every = self._integer("rescale_every_n_layers") if self.version == "6" else None
        if not every or not official.endswith(("att.output.weight", "ffn.value.weight")):
            return weight
        power = int(official.split(".")[1]) // every
        if power == 0:
            return weight
        with np.errstate(over="ignore"):
            if isinstance(weight, np.ndarray):
                return np.ldexp(weight.astype(np.float32), power).astype(weight.dtype)
            blocks = weight.blocks.reshape(weight.rows, weight.columns // BLOCK, -1).copy()
            scales = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)
            blocks[:, :, :2] = np.ldexp(scales, power).astype(np.float16).view(np.uint8)
        return replace(weight, blocks=blocks.reshape(weight.rows, -1))


def _narrowed(tensors: dict[str, Weight], matrices: set[str]) -> dict[str, Weight]:
    """Vectors in the type of the matrices, if that is one 16-bit type which holds all of them exactly."""
    types = {
        None if isinstance(weight, Quantized) else weight.dtype
        for weight in (tensors[name] for name in matrices)
    }
    (dtype,) = types if len(types) == 1 else (None,)
    if dtype not in (DTYPES["bfloat16"], DTYPES["float16"]):
        return tensors
    narrow: dict[str, Weight] = {}
    for name in tensors.keys() - matrices:
        vector = dense(tensors[name])
        with np.errstate(over="ignore", invalid="ignore"):
            narrow[name] = rounded = vector.astype(dtype)
        if not np.array_equal(rounded.astype(np.float32), vector.astype(np.float32)):
            return tensors
    return tensors | narrow


# llama.cpp's numbers for what most of a file is.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
_QUANTIZATION_VERSION = 2
_CONTEXT = 1048576


def write_gguf(file: BinaryIO, checkpoint: Checkpoint, path: Path) -> None:
    """Write a model to an open file: matrices as they are, everything else as float32.

    Raises:
        CheckpointError: its tokenizer is broken.
    """
    config = checkpoint.config
    tensors = dict(_tensors_to_write(checkpoint))
    counts: dict[str, int] = {}
    for tensor in tensors.values():
        counts[tensor.type] = counts.get(tensor.type, 0) + prod(tensor.shape)
    architecture = ARCHITECTURES[config.version.split(".")[0]]
    metadata: dict[str, Any] = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.file_type": _FILE_TYPES[max(counts, key=lambda name: counts[name])],
        "general.quantization_version": _QUANTIZATION_VERSION,
    }
    metadata |= {f"{architecture}.{name}": value for name, value in _sizes(config).items()}
    metadata |= tokenizer_metadata(checkpoint.tokenizer, config.vocab_size, path)
    write_container(file, metadata, tensors)


def _sizes(config: ModelConfig) -> dict[str, int | float]:
    sizes: dict[str, int | float] = {
        # Nothing limits the context; llama.cpp wants a number.
        "context_length": _CONTEXT,
        "vocab_size": config.vocab_size,
        "embedding_length": config.width,
        "block_count": config.num_layers,
        "feed_forward_length": config.ffn_width,
        "attention.head_count": 0,
        "attention.layer_norm_epsilon": 1e-5,
    }
    if config.head_size:
        sizes["wkv.head_size"] = config.head_size
    if config.version == "6":
        sizes |= {
            "time_mix_extra_dim": config.mix_rank,
            "time_decay_extra_dim": config.decay_rank,
            "rescale_every_n_layers": 0,
        }
    if config.version == "7":
        sizes |= {
            "attention.decay_lora_rank": config.decay_rank,
            "attention.iclr_lora_rank": config.iclr_rank,
            "attention.value_residual_mix_lora_rank": config.value_rank,
            "attention.gate_lora_rank": config.gate_rank,
        }
    return sizes


def _tensors_to_write(checkpoint: Checkpoint) -> Iterator[tuple[str, TensorToWrite]]:
    config, tensors = checkpoint.config, checkpoint.tensors
    letters = lerp_letters(config.version)
    for official, row in names(config.version, config.num_layers).items():
        prefix, source = "", official
        if official.startswith("blocks."):
            _, layer, leaf = official.split(".", 2)
            prefix = f"blocks.{layer}."
            if letters is not None and leaf.startswith(letters[0]) and leaf[len(letters[0]) :] in letters[1]:
                if leaf == letters[0] + letters[1][0]:
                    vectors = [tensors[f"{prefix}{letters[0]}{letter}"] for letter in letters[1]]
                    yield f"blk.{layer}.{LERP_FUSED}", _fused(vectors, config.width)
                continue
            if config.version == "7" and layer == "0":
                source = prefix + COPIED_7.get(leaf, leaf)
        yield row.name, _to_write(row, tensors[source])


def _fused(vectors: list[Weight], width: int) -> TensorToWrite:
    def data() -> Iterable[np.ndarray]:
        return [dense(vector).astype(np.float32) for vector in vectors]

    return TensorToWrite("F32", (len(vectors), 1, 1, width), data)


_NAME_OF = {dtype: name for name, dtype in FLOATS.items()}


def _to_write(row: Row, weight: Weight) -> TensorToWrite:
    if isinstance(weight, Quantized) and weight.transposed == (row.form == "transposed"):
        return TensorToWrite(weight.kind.upper(), (weight.rows, weight.columns), lambda: [weight.blocks])
    if row.is_matrix:
        if row.form == "matrix":
            return TensorToWrite(_NAME_OF[weight.dtype], weight.shape, lambda: [dense(weight)])
        shape = (*weight.shape[:-2], weight.shape[-1], weight.shape[-2])
        return TensorToWrite(_NAME_OF[weight.dtype], shape, lambda: [dense(weight).swapaxes(-1, -2)])
    shape = weight.shape if row.form == "heads" else (weight.size,)
    return TensorToWrite("F32", shape, lambda: [dense(weight).astype(np.float32)])
