"""Matrices in blocks: what they stand for, and that whatever takes a checkpoint takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rookery.checkpoints import (
    BLOCK_BYTES,
    Checkpoint,
    Quantized,
    assemble,
    cast,
    check_finite,
    dense,
    dequantize,
    dtype_name,
    load,
    save,
    save_huggingface,
)
from rookery.errors import CheckpointError
from rookery.generate.state_file import fingerprint

MakeModel = Callable[..., Checkpoint]


def blocks_of(kind: str, shape: tuple[int, int], *, transposed: bool = False, seed: int = 1) -> Quantized:
    """Random blocks with finite scales."""
    rows, columns = reversed(shape) if transposed else shape
    rng = np.random.default_rng(seed)
    parts = rng.integers(0, 256, (rows, columns // 32, BLOCK_BYTES[kind]), np.uint8)
    scales = rng.standard_normal((rows, columns // 32)).astype(np.float16)
    parts[:, :, :2] = scales[..., None].view(np.uint8)
    return Quantized(kind, shape, parts.reshape(rows, -1), transposed)


def with_blocks(model: Checkpoint) -> Checkpoint:
    """The model with some matrices of random blocks, one of them transposed."""
    D, F = model.config.width, model.config.ffn_width
    changed = {
        "blocks.0.ffn.key.weight": blocks_of("q8_0", (F, D)),
        "blocks.1.ffn.key.weight": blocks_of("q4_0", (F, D)),
    }
    if model.config.version == "7":
        changed["blocks.0.att.w1"] = blocks_of("q8_0", (D, model.config.decay_rank), transposed=True)
    return assemble({**model.tensors, **changed}, tokenizer=model.tokenizer)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", BLOCK_BYTES)
def test_weights_are_scale_times_integer(kind: str, transposed: bool) -> None:
    shape = (96, 5) if transposed else (5, 96)
    matrix = blocks_of(kind, shape, transposed=transposed)
    assert (matrix.shape, matrix.size, matrix.ndim) == (shape, 480, 2)
    assert (matrix.rows, matrix.columns) == (5, 96)
    expected = np.empty((5, 96), np.float64)
    for row in range(5):
        for block in range(3):
            raw = matrix.blocks[row].tobytes()[block * BLOCK_BYTES[kind] :][: BLOCK_BYTES[kind]]
            scale = float(np.frombuffer(raw[:2], np.float16)[0])
            for i in range(32):
                if kind == "q8_0":
                    number = int.from_bytes(raw[2 + i : 3 + i], signed=True)
                else:
                    number = (raw[2 + i % 16] >> (0 if i < 16 else 4)) % 16 - 8
                expected[row, 32 * block + i] = scale * number
    weights = matrix.dequantize()
    assert weights.dtype == np.float32
    assert weights.flags.c_contiguous
    assert np.array_equal(weights, expected.T if transposed else expected)
    assert dtype_name(matrix) == kind


def test_blocks_that_are_no_matrix_are_refused() -> None:
    good = blocks_of("q8_0", (5, 96))
    for change in (
        {"kind": "q5_k"},
        {"shape": (5, 64)},
        {"shape": (5, 97)},
        {"shape": (0, 96)},
        {"shape": (5, 96, 1)},
        {"transposed": True},
        {"blocks": good.blocks[:4]},
        {"blocks": good.blocks.view(np.int8)},
    ):
        with pytest.raises(CheckpointError):
            replace(good, **change)


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "folder"])
def test_dense_formats_get_what_the_blocks_stand_for(
    tmp_path: Path, make_model: MakeModel, assert_same: Callable, name: str
) -> None:
    model = with_blocks(make_model("7", tokenizer={"kind": "bytes"}, head_size=64, width=64))
    path = tmp_path / name
    (save_huggingface if name == "folder" else save)(model, path)
    assert_same(replace(dequantize(model), path=path), load(path))


def test_casting_dequantizes(make_model: MakeModel) -> None:
    model = with_blocks(make_model("7"))
    rounded = cast(model, "bfloat16")
    for name, tensor in model.tensors.items():
        assert np.array_equal(rounded.tensors[name], dense(tensor).astype(rounded.tensors[name].dtype))


def test_scales_that_are_not_finite_are_found(make_model: MakeModel) -> None:
    model = with_blocks(make_model("7", width=64))
    check_finite(model)
    model.tensors["blocks.1.ffn.key.weight"].blocks[2, 18:20] = np.array([np.inf], np.float16).view(np.uint8)
    with pytest.raises(CheckpointError, match=r"\(2, 32\)") as caught:
        check_finite(model)
    assert caught.value.tensor == "blocks.1.ffn.key.weight"


def test_a_quantized_tensor_must_be_a_matrix_of_the_model(make_model: MakeModel) -> None:
    model = make_model("4")
    with pytest.raises(CheckpointError, match="expected"):
        assemble({**model.tensors, "ln_out.weight": blocks_of("q8_0", (1, 32))})


def test_blocks_and_what_they_stand_for_have_one_fingerprint(make_model: MakeModel) -> None:
    model = with_blocks(make_model("7"))
    assert fingerprint(model.tensors) == fingerprint(dequantize(model).tensors)
