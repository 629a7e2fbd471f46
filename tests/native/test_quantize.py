"""Blocks made by the extension: the same under every instruction set, and as good as they can be."""

from __future__ import annotations

from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

from rookery.checkpoints import Checkpoint, Quantized, assemble, dense, expected_shapes, optional_shapes
from rookery.checkpoints.gguf_names import names
from rookery.checkpoints.quantized import quantize_q8_0
from rookery.config import VERSIONS, Version, sized
from rookery.errors import CheckpointError, ConfigError
from rookery.native import _engine
from rookery.native.quantize import TYPES, Converted, quantize

every_set = pytest.mark.parametrize("instructions", _engine.available_instruction_sets())


@pytest.fixture
def forced(instructions):
    before = _engine.instruction_set()
    _engine.force_instruction_set(instructions)
    yield instructions
    _engine.force_instruction_set(before)


def blocks_of(weights: np.ndarray, kind: str, threads: int = 1) -> tuple[Quantized, float, float]:
    rows, columns = weights.shape
    raw = np.ascontiguousarray(weights).reshape(-1).view(np.uint8)
    options: dict[str, Any] = {"rows": rows, "columns": columns, "type": kind, "threads": threads}
    blocks, error, square = _engine.quantize(raw, source=weights.dtype.name, **options)
    return Quantized(kind, (rows, columns), blocks), error, square


def sample(rows: int = 100, columns: int = 96) -> np.ndarray:
    """Blocks of many sizes and shapes: normal, one large weight, all of one sign, zeros, denormal scales."""
    rng = np.random.default_rng(11)
    weights = rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-4, 3, (rows, 1))
    weights[1, 5] *= 50
    weights[2] = np.abs(weights[2])
    weights[3, 32:64] = 0
    weights[4] = rng.standard_normal(columns) * 1e-6
    return weights.astype(np.float32)


@every_set
def test_8_bits_are_those_of_the_plain_definition(forced) -> None:
    weights = sample()
    made, error, square = blocks_of(weights, "q8_0", threads=2)
    assert np.array_equal(made.blocks, quantize_q8_0(weights))
    off = made.dequantize().astype(np.float64) - weights
    assert error == pytest.approx(np.square(off).sum(), rel=1e-9)
    assert square == pytest.approx(np.square(weights.astype(np.float64)).sum(), rel=1e-9)


def plain_q4(weights: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Squared error of each block, at the best of many scales for its largest weight."""
    parts = weights.reshape(-1, 32).astype(np.float64)
    largest = np.abs(parts).max(axis=1, keepdims=True)
    best = np.square(parts).sum(axis=1)
    for candidate in candidates:
        scale = (largest / candidate).astype(np.float16).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            q = np.nan_to_num(np.clip(np.rint(parts / scale), -8, 7))
        best = np.minimum(best, np.square(parts - scale * q).sum(axis=1))
    return best


def block_errors(made: Quantized, weights: np.ndarray) -> np.ndarray:
    return np.square(made.dequantize().astype(np.float64) - weights).reshape(-1, 32).sum(axis=1)


@every_set
def test_4_bits_have_nearly_the_least_error(forced) -> None:
    weights = sample()
    made = blocks_of(weights, "q4_0")[0]
    errors = block_errors(made, weights)
    exhaustive = plain_q4(weights, np.concatenate([s * np.linspace(4, 12, 400) for s in (1, -1)]))
    # Of a normal distribution's blocks, a large part reaches the least error; none is far from it.
    ordinary = np.ones(len(errors), bool)
    ordinary[12:15] = False  # denormal scales, of which there are few to choose from
    assert (errors[ordinary] <= 1.25 * exhaustive[ordinary] + 1e-30).all()
    assert errors[ordinary].sum() <= 1.01 * exhaustive[ordinary].sum()
    theirs = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q4_0)
    known = block_errors(Quantized("q4_0", weights.shape, theirs), weights)
    assert errors[:12].sum() + errors[15:].sum() < 0.92 * (known[:12].sum() + known[15:].sum())
    assert (made.dequantize()[3, 32:64] == 0).all()


def test_every_instruction_set_makes_the_same_blocks() -> None:
    before = _engine.instruction_set()
    made = []
    for name in _engine.available_instruction_sets():
        _engine.force_instruction_set(name)
        made.append(blocks_of(sample(), "q4_0", threads=len(made) + 1)[0].blocks)
    _engine.force_instruction_set(before)
    for blocks in made[1:]:
        assert np.array_equal(blocks, made[0])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", TYPES.values())
def test_16_bit_sources(kind: str, dtype: Any) -> None:
    weights = sample().astype(dtype)
    assert np.array_equal(
        blocks_of(weights, kind)[0].blocks, blocks_of(weights.astype(np.float32), kind)[0].blocks
    )


@every_set
@pytest.mark.parametrize("kind", TYPES.values())
def test_what_is_no_number_does_no_harm(forced, kind: str) -> None:
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        weights = sample()
        weights[7, 40] = bad
        made, error, _ = blocks_of(weights, kind)
        back = made.dequantize()
        assert not np.isfinite(back[7, 40])
        assert np.isfinite(back[:7]).all()
        assert not np.isfinite(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "float16"}, "there are blocks of q8_0 and q4_0, not 'float16'"),
        ({"type": "q9"}, "no source type 'q9'"),
        ({"source": "int8"}, "no source type 'int8'"),
        ({"rows": 0}, "at least one row"),
        ({"rows": 2**31}, "at least one row"),
        ({"rows": 2**30, "columns": 2**30}, "at least one row"),
        ({"rows": 3}, "needs 384 bytes, not 256"),
        ({"columns": 48, "rows": 1}, "needs 192 bytes"),
        ({"threads": 0}, "threads must be 1 to 256"),
    ],
)
def test_bad_options_say_what_is_wrong(change: dict, message: str) -> None:
    options = {"source": "float32", "rows": 2, "columns": 32, "type": "q8_0", **change}
    with pytest.raises(ValueError, match=message):
        _engine.quantize(np.zeros(256, np.uint8), **options)


def test_rows_that_are_no_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="do not consist of blocks of 32"):
        _engine.quantize(np.zeros(192, np.uint8), source="float32", rows=1, columns=48, type="q8_0")


def model(version: Version, **sizes: int) -> Checkpoint:
    ranks = {"6": {"mix_rank": 32, "decay_rank": 64}, "7": {"decay_rank": 32, "gate_rank": 24}}
    heads = {} if version == "4" else {"head_size": 16}
    config = sized(version, vocab_size=70, width=64, num_layers=2, **heads, **ranks.get(version, {}), **sizes)
    rng = np.random.default_rng(3)
    shapes = expected_shapes(config) | optional_shapes(config)
    return assemble({name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("version", VERSIONS)
def test_matrices_become_blocks_and_vectors_stay(version: Version, type_: str) -> None:
    whole = model(version)
    reports: list[Converted] = []
    made = quantize(whole, type_, report=reports.append)
    assert made.config == whole.config
    assert list(made.tensors) == list(whole.tensors)
    assert [each.name for each in reports] == list(whole.tensors)
    rows = names(version, 2)
    for name, weight in made.tensors.items():
        off = np.linalg.norm(dense(weight).astype(np.float64) - whole.tensors[name])
        error = off / np.linalg.norm(whole.tensors[name])
        assert reports[list(whole.tensors).index(name)].error == pytest.approx(error, rel=1e-6, abs=1e-12)
        if not rows[name].is_matrix:
            assert weight is whole.tensors[name]
        elif name.endswith(("time_maa_w2", "g2")):
            # Three axes; 24 inputs.
            assert weight.dtype == np.float16
        else:
            assert isinstance(weight, Quantized)
            kept = name == "emb.weight" or weight.transposed
            assert weight.kind == ("q8_0" if kept else TYPES[type_])
            assert weight.transposed == (rows[name].form == "transposed")
            assert error < (0.01 if weight.kind == "q8_0" else 0.12)


def test_what_is_of_the_kind_stays_and_other_kinds_are_made_anew() -> None:
    eight = quantize(model("7"), "q8")
    assert quantize(eight, "q8").tensors["head.weight"] is eight.tensors["head.weight"]
    four = quantize(eight, "q4").tensors["head.weight"]
    assert isinstance(four, Quantized)
    assert four.kind == "q4_0"


def test_bad_arguments_and_weights_are_named() -> None:
    whole = model("7")
    with pytest.raises(ConfigError, match="no type 'q5'"):
        quantize(whole, "q5")
    with pytest.raises(ConfigError, match="threads"):
        quantize(whole, "q8", threads=0)
    for bad in (np.nan, 1e30):
        for name in ("blocks.1.ffn.key.weight", "blocks.1.att.g2"):
            broken = model("7")
            broken.tensors[name][3, 3] = bad
            with pytest.raises(CheckpointError, match="not finite, or too large") as caught:
                quantize(broken, "q4")
            assert caught.value.tensor == name
