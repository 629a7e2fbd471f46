"""`rookery convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from rookery.checkpoints import DTYPES, Checkpoint, expected_shapes, load, save
from rookery.cli import convert
from rookery.config import sized
from rookery.errors import CheckpointError


@pytest.fixture
def model(tmp_path: Path) -> Checkpoint:
    config = sized("7", vocab_size=71, width=64, num_layers=2)
    rng = np.random.default_rng(0)
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in expected_shapes(config).items()}
    checkpoint = Checkpoint(config=config, tensors=tensors, tokenizer={"kind": "world"})
    save(checkpoint, tmp_path / "in.pth")
    return checkpoint


def _run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    return convert.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.mark.parametrize("name", ["out.safetensors", "out.pth"])
def test_weights_stay_bit_for_bit(
    tmp_path: Path, model: Checkpoint, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(tmp_path / "in.pth", tmp_path / name) == 0
    assert str(tmp_path / name) in capsys.readouterr().out
    converted = load(tmp_path / name)
    assert converted.tokenizer == {"kind": "world"}
    assert list(converted.tensors) == list(model.tensors)
    for tensor_name, tensor in model.tensors.items():
        assert converted.tensors[tensor_name].tobytes() == tensor.tobytes()


@pytest.mark.parametrize("dtype", convert._DTYPES)
def test_weights_are_rounded_on_request(tmp_path: Path, model: Checkpoint, dtype: str) -> None:
    assert _run(tmp_path / "in.pth", tmp_path / "out.safetensors", "--dtype", dtype) == 0
    for name, tensor in load(tmp_path / "out.safetensors").tensors.items():
        assert tensor.dtype == DTYPES[dtype]
        assert tensor.tobytes() == model.tensors[name].astype(DTYPES[dtype]).tobytes()


def test_the_dtypes_are_those_of_checkpoints() -> None:
    assert tuple(DTYPES) == convert._DTYPES


def test_a_huggingface_folder_is_written(tmp_path: Path, model: Checkpoint) -> None:
    assert _run(tmp_path / "in.pth", tmp_path / "folder", "--huggingface", "--dtype", "bfloat16") == 0
    assert (tmp_path / "folder" / "config.json").exists()
    assert load(tmp_path / "folder").config == model.config


def test_an_unknown_suffix_is_refused(tmp_path: Path, model: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="suffix"):
        _run(tmp_path / "in.pth", tmp_path / "out.bin")
    assert not (tmp_path / "out.bin").exists()
