"""What ``scripts.fuzz`` tries: see there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rookery.checkpoints import (
    Checkpoint,
    Quantized,
    Weight,
    cast,
    check_finite,
    dense,
    expected_shapes,
    load,
    save,
)
from rookery.checkpoints.gguf_container import GGUFFile, TensorToWrite, write_container
from rookery.checkpoints.gguf_types import CODES, TYPES
from rookery.config import VERSIONS, ModelConfig, Version, sized
from rookery.errors import RookeryError
from rookery.native import NativeModel, _engine
from rookery.native import load as load_native
from rookery.native.quantize import quantize
from rookery.state import State, initial_state

__all__ = ["EngineTarget", "GGUFTarget"]

_RANKS: dict[str, dict[str, int]] = {
    "6": {"mix_rank": 32, "decay_rank": 32},
    "7": {"decay_rank": 32, "iclr_rank": 32, "value_rank": 32, "gate_rank": 32},
}


def _model(version: Version, **sizes: int) -> Checkpoint:
    sizes = (
        {"vocab_size": 40, "width": 64, "num_layers": 2, "ffn_width": 96} | _RANKS.get(version, {}) | sizes
    )
    if version != "4":
        sizes.setdefault("head_size", 32)
    config = sized(version, **sizes)
    rng = np.random.default_rng(0)
    tensors = {
        name: (0.3 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in expected_shapes(config).items()
    }
    return Checkpoint(config=config, tensors=tensors, tokenizer={"kind": "bytes"})


class _Places(GGUFFile):
    """Where a file has its numbers: lengths, counts, types, offsets."""

    def __init__(self, path: Path):
        self.places: list[tuple[int, int]] = []
        super().__init__(path)
        self.header = self._at

    def _take(self, count: int) -> bytes:
        if count in (4, 8):
            self.places.append((self._at, count))
        return super()._take(count)


class GGUFTarget:
    """Broken GGUF files.

    Args:
        folder: for the files; those of earlier processes are there and are used.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        wholes = sorted((folder / "whole").glob("*.gguf")) or self._make()
        self.files = [path.read_bytes() for path in wholes]
        readers = [_Places(path) for path in wholes]
        self.places = [reader.places for reader in readers]
        self.headers = [reader.header for reader in readers]

    def _make(self) -> list[Path]:
        """Whole files: every version and every type."""
        (self.folder / "whole").mkdir()
        paths = []
        for version in VERSIONS:
            model = _model(version)
            for kind in ("q8", "q4", "bfloat16"):
                made = cast(model, kind) if kind == "bfloat16" else quantize(model, kind)
                paths.append(self.folder / "whole" / f"{version}-{kind}.gguf")
                save(made, paths[-1])
        wide = self.folder / "whole" / "wide.gguf"
        save(_model("7", width=256, ffn_width=256, num_layers=1), wide)
        for name in ("Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"):
            paths.append(self.folder / "whole" / f"7-{name}.gguf")
            _retype(wide, paths[-1], name)
        wide.unlink()
        return paths

    def one(self, rng: np.random.Generator) -> bool:
        """Try one file; whether it was refused."""
        which = int(rng.integers(len(self.files)))
        data = bytearray(self.files[which])
        for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
            data = self._mutated(data, which, rng)
        path = self.folder / f"{id(self)}.gguf"
        path.write_bytes(data)
        try:
            self._use(path, len(data))
        except RookeryError:
            return True
        return False

    def _use(self, path: Path, size: int) -> None:
        checkpoint = load(path)
        held = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
        # q8_0 is at most 1.9 times what it was made of, and low-rank matrices of three axes become float32.
        assert held <= 8 * size, f"{held} bytes of weights in a file of {size}"
        model = load_native(checkpoint, threads=1)
        tokens = np.arange(3)[None] % checkpoint.config.vocab_size
        logits, _ = model.forward(tokens, initial_state(checkpoint.config, 1), last_only=True)
        assert logits.shape == (1, 1, checkpoint.config.vocab_size)
        check_finite(checkpoint)
        again = self.folder / "again.gguf"
        save(checkpoint, again)
        copy = load(again)
        assert copy.config == checkpoint.config
        for name, tensor in copy.tensors.items():
            assert np.array_equal(dense(tensor), dense(checkpoint.tensors[name])), name

    def _mutated(self, data: bytearray, which: int, rng: np.random.Generator) -> bytearray:
        header = min(self.headers[which], len(data))
        draw = rng.random()
        if draw < 0.4:
            start, count = self.places[which][int(rng.integers(len(self.places[which])))]
            old = int.from_bytes(data[start : start + count], "little")
            data[start : start + count] = _strange(old, count, len(data), rng)
        elif draw < 0.55:
            for place in rng.integers(0, max(header, 1), int(rng.integers(1, 9))):
                data[place : place + 1] = bytes(int(rng.integers(256)) for _ in data[place : place + 1])
        elif draw < 0.63:
            del data[int(rng.integers(len(data) + 1)) :]
        elif draw < 0.73:
            start, count = int(rng.integers(header + 1)), int(rng.integers(1, 40))
            if rng.random() < 0.5:
                del data[start : start + count]
            else:
                data[start:start] = data[:count] if rng.random() < 0.5 else rng.bytes(count)
        elif draw < 0.8:
            other = self.files[int(rng.integers(len(self.files)))]
            start, count = int(rng.integers(header + 1)), int(rng.integers(1, 400))
            data[start : start + count] = other[start : start + count]
        else:
            for place in rng.integers(header, max(len(data), header + 1), 8):
                data[place : place + 2] = bytes(rng.choice([0x00, 0x7C, 0x7E, 0xFC, 0xFF], 2).tolist())
        return data


def _retype(source: Path, target: Path, name: str) -> None:
    """The file with every matrix of blocks of a type, of random bits."""
    reader = GGUFFile(source)
    kind = TYPES[CODES[name]]
    rng = np.random.default_rng(1)

    def blocks(rows: int, columns: int) -> np.ndarray:
        raw = rng.integers(0, 256, (rows, columns // kind.block, kind.size), np.uint8)
        # The upper bytes of scales: small ones.
        for high in (1, 3, 209):
            if high < kind.size:
                raw[:, :, high] = 0x20
        return raw.reshape(rows, -1)

    tensors = {}
    for tensor, entry in reader.tensors.items():
        if len(entry.shape) == 2 and entry.shape[1] % kind.block == 0:
            data = blocks(*entry.shape)
            tensors[tensor] = TensorToWrite(name, entry.shape, lambda data=data: [data])
        else:
            raw = reader.file.array(entry.offset, np.dtype(np.uint8), (entry.nbytes,), tensor=tensor)
            tensors[tensor] = TensorToWrite(entry.kind.name, entry.shape, lambda raw=raw: [raw])
    metadata = {key: value for key, value in reader.metadata.items() if isinstance(value, str | int | float)}
    with target.open("wb") as file:
        write_container(file, metadata, tensors)


def _strange(old: int, count: int, size: int, rng: np.random.Generator) -> bytes:
    """A number that a field should not have, as bytes."""
    values = [0, 1, 2, 3, 5, 7, 8, 9, 12, 13, 31, 32, 33, 63, 255, 256, 4096, 65535, 65536, 1 << 20]
    values += [old - 1, old + 1, 2 * old, old // 2, old ^ 1 << int(rng.integers(8 * count)), size, size - 1]
    values += [(1 << bits) + off for bits in (31, 32, 48, 62, 63, 64) for off in (-1, 0, 1)]
    value = values[int(rng.integers(len(values)))] % (1 << 8 * count)
    return value.to_bytes(count, "little")


class EngineTarget:
    """Broken arguments of the native engine."""

    def __init__(self) -> None:
        self.checkpoints = [_model(version) for version in VERSIONS]
        self.checkpoints += [quantize(_model(version), kind) for version in VERSIONS for kind in ("q8", "q4")]

    def one(self, rng: np.random.Generator) -> bool:
        """Try one call; whether it was refused."""
        calls: list[tuple[Callable[[np.random.Generator], None], type | tuple[type, ...]]] = [
            (self._forward, RookeryError),
            (self._advance, RookeryError),
            (self._load, RookeryError),
            (self._matrix, (ValueError, TypeError)),
        ]
        call, allowed = calls[int(rng.integers(len(calls)))]
        try:
            with np.errstate(all="ignore"):
                call(rng)
        except allowed:
            return True
        return False

    def _one_model(self, rng: np.random.Generator) -> NativeModel:
        which = int(rng.integers(len(self.checkpoints)))
        return load_native(self.checkpoints[which], threads=1 + which % 2)

    def _forward(self, rng: np.random.Generator) -> None:
        model = self._one_model(rng)
        tokens = _tokens(model.config, rng)
        batch = tokens.shape[0] if tokens.ndim and rng.random() < 0.8 else int(rng.integers(4))
        state = _state(model.config, min(batch, 64), rng)
        logits, after = model.forward(tokens, state, last_only=bool(rng.random() < 0.5))
        assert logits.dtype == np.float32
        assert logits.shape[-1] == model.config.vocab_size
        assert [part.shape for part in after] == [part.shape for part in state]

    def _advance(self, rng: np.random.Generator) -> None:
        model = self._one_model(rng)
        pool = _state(model.config, int(rng.integers(9)), rng)
        count = int(rng.integers(6))
        slots = rng.permutation(8)[:count].tolist() if rng.random() < 0.7 else _integers(count, rng)
        requests = [(slot, _tokens(model.config, rng).reshape(-1)[:50]) for slot in slots]
        logits = model.advance(requests, pool)
        assert logits.shape == (count, model.config.vocab_size)

    def _load(self, rng: np.random.Generator) -> None:
        checkpoint = self.checkpoints[int(rng.integers(len(self.checkpoints)))]
        tensors: dict[str, Weight] = dict(checkpoint.tensors)
        config = checkpoint.config
        for _ in range(int(rng.integers(3))):
            names = list(tensors)
            name, other = (names[int(rng.integers(len(names)))] for _ in range(2))
            draw = rng.random()
            if draw < 0.2:
                del tensors[name]
            elif draw < 0.4:
                tensors[name] = tensors[other]
            elif draw < 0.8:
                tensors[name] = _changed(tensors[name], rng)
            else:
                key = str(rng.choice(["vocab_size", "width", "num_layers", "ffn_width", "attention_width"]))
                config = replace(config, **{key: max(1, getattr(config, key) + int(rng.integers(-40, 41)))})
        dtype = rng.choice(np.array([None, "float32", "bfloat16", "q8", "q4", "float16", "int3"], object))
        threads = rng.choice(np.array([None, 1, 2, 3, 0, -1, 257, 10**6, 2**40], object))
        model = load_native(replace(checkpoint, config=config, tensors=tensors), dtype=dtype, threads=threads)
        model.forward(np.zeros((1, 2), np.int64), initial_state(config, 1))

    def _matrix(self, rng: np.random.Generator) -> None:
        rows, columns = (_integers(1, rng)[0] if rng.random() < 0.2 else int(rng.integers(100)) for _ in "rc")
        source = str(rng.choice(["float32", "float16", "bfloat16", "q8_0", "q4_0", "", "q9"]))
        each = {"float32": 4, "float16": 2, "bfloat16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32}.get(source, 1)
        size = int(rows * columns * each) if 0 <= rows * columns < 1 << 20 else int(rng.integers(9999))
        data = rng.integers(0, 256, max(0, size + int(rng.choice([0, 0, 0, 1, -1]))), np.uint8)
        threads = int(rng.choice([1, 2, 3, 0, -1, 257]))
        if rng.random() < 0.3:
            kind = str(rng.choice(["q8_0", "q4_0", "float32"]))
            _engine.quantize(data, source=source, rows=rows, columns=columns, type=kind, threads=threads)
            return
        matrix = _engine.Matrix(
            _engine.Arena(),
            data,
            source=source,
            rows=rows,
            columns=columns,
            type=str(rng.choice(["float32", "bfloat16", "q8", "q4", "q2"])),
            layout=str(rng.choice(["panels", "columns", "rows"])),
            transposed=bool(rng.random() < 0.2),
            threads=threads,
        )
        width = columns + int(rng.choice([0, 0, 0, 1, -1]))
        x = rng.standard_normal((int(rng.integers(30)), max(width, 0))).astype(np.float32)
        if x.size:
            x.reshape(-1)[int(rng.integers(x.size))] = rng.choice([np.nan, np.inf, 1e38, 0])
        y = matrix.multiply(x, int(rng.choice([1, 2, 0])))
        assert y.shape == (len(x), rows)


def _integers(count: int, rng: np.random.Generator) -> list[int]:
    values = [0, 1, 2, 7, 8, -1, -(2**31), 2**31 - 1, 2**31, 2**32, 2**62, -(2**63), 2**63 - 1]
    return [values[int(i)] for i in rng.integers(len(values), size=count)]


def _tokens(config: ModelConfig, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(int(rng.choice([1, 2, 3, 17, 40])) for _ in range(2))
    tokens = rng.integers(0, config.vocab_size, shape)
    draw = rng.random()
    if draw < 0.1:
        return tokens.astype(
            rng.choice(np.array([np.float32, np.bool_, np.uint8, np.int16, np.uint64, object]))
        )
    if draw < 0.2:
        return tokens.reshape(-1) if rng.random() < 0.5 else tokens[:, :0]
    if draw < 0.4:
        tokens.reshape(-1)[int(rng.integers(tokens.size))] = _integers(1, rng)[0]
    return tokens


def _state(config: ModelConfig, batch: int, rng: np.random.Generator) -> State[Any]:
    state = initial_state(config, batch)
    parts = {
        name: rng.standard_normal(part.shape).astype(np.float32) for name, part in state._asdict().items()
    }
    name = str(rng.choice(list(parts)))
    part = parts[name]
    draw = rng.random()
    if draw < 0.15 and part.size:
        part.reshape(-1)[int(rng.integers(part.size))] = rng.choice([np.nan, np.inf, -np.inf, 1e38])
    elif draw < 0.2:
        parts[name] = part[..., :-1]
    elif draw < 0.25:
        parts[name] = np.asfortranarray(part)
    elif draw < 0.3:
        parts[name] = part.astype(rng.choice(np.array([np.float64, np.float16, np.int8])))
    elif draw < 0.35:
        part.flags.writeable = False
    elif draw < 0.4:
        parts[name] = part.reshape(-1)
    return State(**parts)


def _changed(weight: Weight, rng: np.random.Generator) -> Weight:
    draw = rng.random()
    if isinstance(weight, Quantized):
        if draw < 0.4 and weight.shape[0] % 32 == 0:
            columns = weight.blocks.shape[1] // weight.columns * weight.rows
            blocks = np.resize(weight.blocks, (weight.columns, max(columns, 1)))
            try:
                return Quantized(weight.kind, weight.shape, blocks, not weight.transposed)
            except RookeryError:
                return weight
        if draw < 0.7:
            blocks = weight.blocks.copy()
            blocks[0, :2] = (0, int(rng.choice([0x7C, 0x7E, 0xFC])))
            return replace(weight, blocks=blocks)
        return dense(weight)
    if draw < 0.2:
        return weight[:-1]
    if draw < 0.4:
        return np.ascontiguousarray(weight.T) if weight.ndim > 1 else np.concatenate([weight, weight])
    if draw < 0.6:
        return weight.astype(rng.choice(np.array([np.float16, np.float64, np.int32])))
    if draw < 0.8:
        return weight[..., ::-1]
    changed = weight.copy()
    changed.reshape(-1)[0] = rng.choice([np.nan, np.inf, 1e38])
    return changed
