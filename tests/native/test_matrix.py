"""Packed matrices: every type and layout, under every instruction set of the machine, against numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from rookery.native import _engine

SHAPES = [(70, 100), (16, 32), (200, 64), (1, 1), (129, 333)]
TOKENS = 29

# Largest difference from float64, in units of the largest output: integers round weights and inputs.
BOUNDS = {"float32": 1e-6, "bfloat16": 1e-2, "q8": 2e-2, "q4": 0.2}

every_set = pytest.mark.parametrize("instructions", _engine.available_instruction_sets())
every_type = pytest.mark.parametrize("kind", BOUNDS)
every_layout = pytest.mark.parametrize("layout", ["panels", "columns"])


@pytest.fixture
def forced(instructions):
    before = _engine.instruction_set()
    _engine.force_instruction_set(instructions)
    yield instructions
    _engine.force_instruction_set(before)


def packed(weights: np.ndarray, kind: str, layout: str = "panels", **options):
    rows, columns = weights.shape
    data = np.ascontiguousarray(weights).reshape(-1).view(np.uint8)
    options = {"source": weights.dtype.name, "rows": rows, "columns": columns, **options}
    return _engine.Matrix(_engine.Arena(), data, type=kind, layout=layout, **options)


def inputs(columns: int, rng: np.random.Generator) -> np.ndarray:
    """Half of them zero, as in channel mixing."""
    x = rng.standard_normal((TOKENS, columns)).astype(np.float32)
    x[rng.random(x.shape) < 0.5] = 0
    return x


@every_set
@every_type
@every_layout
def test_products(forced, kind: str, layout: str):
    rng = np.random.default_rng(0)
    for rows, columns in SHAPES:
        weights = rng.standard_normal((rows, columns)).astype(np.float32)
        x = inputs(columns, rng)
        wanted = x.astype(np.float64) @ weights.T.astype(np.float64)
        y = packed(weights, kind, layout, threads=2).multiply(x, threads=2)
        assert np.abs(y - wanted).max() <= BOUNDS[kind] * np.abs(wanted).max()


@every_set
@every_type
@every_layout
def test_one_token_computes_what_many_do(forced, kind: str, layout: str):
    """The law of the project: decoding and prefill are the same function."""
    rng = np.random.default_rng(1)
    for rows, columns in SHAPES:
        matrix = packed(rng.standard_normal((rows, columns)).astype(np.float32), kind, layout)
        x = inputs(columns, rng)
        together = matrix.multiply(x)
        alone = np.concatenate([matrix.multiply(x[t : t + 1]) for t in range(TOKENS)])
        np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5 * np.abs(together).max())


@every_set
@every_type
@every_layout
def test_what_is_no_number_is_not_skipped(forced, kind: str, layout: str):
    rng = np.random.default_rng(3)
    x = inputs(96, rng)
    x[1, 70] = np.nan
    y = packed(rng.standard_normal((150, 96)).astype(np.float32), kind, layout).multiply(x)
    assert np.isnan(y[1]).all()
    assert np.isfinite(np.delete(y, 1, axis=0)).all()


@every_set
@every_layout
@pytest.mark.parametrize("kind", ["q8", "q4"])
def test_integers_are_exact(forced, kind: str, layout: str):
    """Small integers, with scales of 1, survive every conversion, so that the result is exact."""
    rng = np.random.default_rng(2)
    bound = 127 if kind == "q8" else 7
    weights = rng.integers(-bound, bound + 1, (40, 96)).astype(np.float32)
    weights[:, ::32] = bound if kind == "q8" else -8
    x = rng.integers(-127, 128, (TOKENS, 96)).astype(np.float32)
    x[:, ::32] = 127
    np.testing.assert_array_equal(packed(weights, kind, layout).multiply(x), x @ weights.T)


@every_type
@every_layout
def test_the_transpose_of_a_source(kind: str, layout: str):
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((48, 64)).astype(ml_dtypes.bfloat16)
    x = inputs(64, rng)
    wanted = packed(weights, kind, layout).multiply(x)
    options = {"rows": 48, "columns": 64, "transposed": True}
    got = packed(np.ascontiguousarray(weights.T), kind, layout, **options).multiply(x)
    np.testing.assert_array_equal(got, wanted)


def test_float16_sources_are_exact():
    values = np.arange(0x7C00, dtype=np.uint16).view(np.float16)[None, :]
    matrix = packed(np.concatenate([values, -values]), "float32")
    x = np.zeros((3, values.shape[1]), np.float32)
    for token, column in enumerate((1, 5000, 0x7BFF)):
        x[token, column] = 1
        y = matrix.multiply(x)[token]
        np.testing.assert_array_equal(y, [values[0, column], -values[0, column]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "q3"}, "no weight type 'q3'"),
        ({"layout": "rows"}, "no layout 'rows'"),
        ({"source": "int8"}, "no source type 'int8'"),
        ({"rows": 3}, "needs"),
        ({"rows": 0}, "at least one row"),
        ({"source": "q8_0"}, "do not consist of blocks of 32"),
        ({"threads": 0}, "threads must be 1 to 256, not 0"),
        ({"threads": 10**6}, "threads must be 1 to 256"),
    ],
)
def test_bad_options_say_what_is_wrong(change: dict, message: str):
    options = {"source": "float32", "rows": 2, "columns": 5, "type": "float32", **change}
    with pytest.raises(ValueError, match=message):
        _engine.Matrix(_engine.Arena(), np.zeros(40, np.uint8), **options)


def test_an_unknown_instruction_set():
    with pytest.raises(ValueError, match="there is no instruction set 'sse9'"):
        _engine.force_instruction_set("sse9")
