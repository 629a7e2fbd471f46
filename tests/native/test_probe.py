"""The measurements of the engine: that they count what they say."""

from __future__ import annotations

import numpy as np
import pytest

from rookery.native import _engine

PEAKS = [_engine.int8_peak, _engine.bf16_peak, _engine.fp32_peak]


def packed(rows: int, columns: int, kind: str, layout: str):
    weights = np.random.default_rng(0).standard_normal(rows * columns).astype(np.float32)
    return _engine.Matrix(
        _engine.Arena(),
        weights.view(np.uint8),
        source="float32",
        rows=rows,
        columns=columns,
        type=kind,
        layout=layout,
    )


@pytest.mark.parametrize("instructions", _engine.available_instruction_sets())
def test_rates_are_those_of_a_computer(instructions: str):
    before = _engine.instruction_set()
    _engine.force_instruction_set(instructions)
    try:
        assert 1e6 < _engine.ReadProbe(8 << 20, threads=2).bandwidth(repetitions=2) < 1e13
        for peak in PEAKS:
            assert 1e6 < peak(threads=1, repetitions=2) < 1e13
    finally:
        _engine.force_instruction_set(before)


@pytest.mark.parametrize(
    ("kind", "panels", "column", "scales"),
    [
        ("float32", 128 * 128 * 4, 128 * 4, 0),
        ("bfloat16", 128 * 128 * 2, 128 * 2, 0),
        ("q8", 128 * (128 + 8), 128, 128 * 2),
        ("q4", 128 * (64 + 8), 64, 128 * 2),
    ],
)
def test_the_columns_of_zeros_are_not_counted(kind: str, panels: int, column: int, scales: int):
    x = np.zeros(128, np.float32)
    x[[0, 1, 70]] = [1, -1, 0.5]
    assert _engine.bytes_read(packed(128, 128, kind, "panels"), x) == panels
    assert _engine.bytes_read(packed(128, 128, kind, "columns"), x) == 3 * column + 2 * scales


def test_what_rounds_to_zero_is_not_counted():
    x = np.array([1] + [1e-3] * 31, np.float32)
    assert _engine.bytes_read(packed(128, 32, "q8", "columns"), x) == 128 + 256
    assert _engine.bytes_read(packed(128, 32, "float32", "columns"), x) == 128 * 32 * 4


@pytest.mark.parametrize("layout", ["panels", "columns"])
def test_products_are_timed(layout: str):
    matrices = [packed(64, 96, "q8", layout), packed(128, 64, "float32", layout)]
    inputs = [np.ones((3, 96), np.float32), np.ones((1, 64), np.float32)]
    seconds = _engine.time_products(matrices, inputs, threads=2, repetitions=4)
    assert len(seconds) == 4
    assert all(0 < each < 10 for each in seconds)


def test_bad_options_say_what_is_wrong():
    matrix = packed(64, 96, "q8", "panels")
    with pytest.raises(ValueError, match="x has 95 columns, but the matrix has 96"):
        _engine.time_products([matrix], [np.ones((1, 95), np.float32)], threads=1, repetitions=1)
    with pytest.raises(ValueError, match="every matrix needs one array"):
        _engine.time_products([matrix], [], threads=1, repetitions=1)
    with pytest.raises(ValueError, match="x has 5 columns"):
        _engine.bytes_read(matrix, np.ones(5, np.float32))
    with pytest.raises(ValueError, match="repetitions must be at least 1"):
        _engine.int8_peak(threads=1, repetitions=0)
    with pytest.raises(ValueError, match="bytes must be at least 1"):
        _engine.ReadProbe(0, threads=1)
    with pytest.raises(ValueError, match="threads must be 1 to 256"):
        _engine.ReadProbe(1024, threads=0)
