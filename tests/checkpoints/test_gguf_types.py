"""Blocks of GGML against the package ``gguf``, whose numpy code llama.cpp's authors keep."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from rookery.checkpoints.gguf_types import CODES, NAMES, TYPES, dequantize_rows
from rookery.checkpoints.quantized import Quantized, quantize_q8_0

BLOCKS = [code for code, kind in TYPES.items() if kind.decode is not None]


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: TYPES[code].name)
def test_random_blocks_stand_for_the_same_weights(code: int) -> None:
    kind = TYPES[code]
    # All bit patterns of scales are among so many: denormal, infinite and NaN as well.
    rows = np.random.default_rng(code).integers(0, 256, (300, 3 * kind.size), np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(code))
    weights = dequantize_rows(kind, rows)
    assert weights.dtype == np.float32
    assert weights.shape == (300, 3 * kind.block)
    assert np.array_equal(weights, expected, equal_nan=True)


def test_codes_and_sizes_are_those_of_ggml() -> None:
    for code, name in NAMES.items():
        assert gguf.GGMLQuantizationType(code).name == name
        assert CODES[name] == code
    for code, kind in TYPES.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(code)] == (kind.block, kind.size)


@pytest.mark.parametrize("spread", [1.0, 1e-4, 1e-7, 1e4])
def test_eight_bits_are_off_by_half_a_step(spread: float) -> None:
    rng = np.random.default_rng(5)
    weights = (spread * rng.standard_normal((40, 128))).astype(np.float32)
    weights[3, :32] = 0
    back = Quantized("q8_0", (40, 128), quantize_q8_0(weights)).dequantize()
    largest = np.abs(weights).reshape(40, 4, 32).max(axis=2).repeat(32, axis=1)
    # A step is the largest of 32 weights over 127; scales below 6e-5 are multiples of 6e-8.
    step = largest / 127 * (1 + 2**-10) + 6e-8
    assert (np.abs(back - weights) <= 0.51 * step).all()
    assert (back[3, :32] == 0).all()
    if spread == 1.0:
        theirs = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
        expected = gguf.quants.dequantize(theirs, gguf.GGMLQuantizationType.Q8_0)
        assert np.square(back - weights).sum() <= 1.001 * np.square(expected - weights).sum()


def test_weights_that_eight_bits_cannot_hold_do_no_harm() -> None:
    weights = np.zeros((2, 64), np.float32)
    weights[0, 0], weights[0, 32], weights[1, 0] = np.nan, np.inf, 1e30
    back = Quantized("q8_0", (2, 64), quantize_q8_0(weights)).dequantize()
    assert not np.isfinite(back[0, 0])
    assert not np.isfinite(back[0, 32])
    assert not np.isfinite(back[1, 0])
    assert np.isfinite(back[1, 32:]).all()
