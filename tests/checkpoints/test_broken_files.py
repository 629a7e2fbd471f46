"""Every broken file gives a CheckpointError that names it, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from rookery.checkpoints import Checkpoint, load, save, save_huggingface
from rookery.errors import CheckpointError

MakeModel = Callable[..., Checkpoint]

SUFFIXES = (".safetensors", ".pth", ".gguf")


@pytest.fixture(scope="session")
def whole(
    tmp_path_factory: pytest.TempPathFactory, make_model: MakeModel, shared_data: Path
) -> dict[str, bytes]:
    """A small whole file of each format."""
    folder = tmp_path_factory.mktemp("whole")
    files = {}
    for suffix in SUFFIXES:
        save(make_model("7", num_layers=1, vocab_size=9), folder / f"m{suffix}")
        files[suffix] = (folder / f"m{suffix}").read_bytes()
    files[".bin"] = (shared_data / "rwkv.cpp" / "tiny-rwkv-5v1-730K-FP32.bin").read_bytes()
    return files


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".bin"])
def test_truncated_files_are_refused(tmp_path: Path, whole: dict[str, bytes], suffix: str) -> None:
    data = whole[suffix]
    path = tmp_path / f"m{suffix}"
    rng = np.random.default_rng(3)
    cuts = {*range(40), *rng.integers(0, len(data), 150).tolist(), *range(len(data) - 40, len(data))}
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert str(path) in str(caught.value), cut


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".bin"])
def test_flipped_bytes_raise_nothing_else(tmp_path: Path, whole: dict[str, bytes], suffix: str) -> None:
    data = bytearray(whole[suffix])
    path = tmp_path / f"m{suffix}"
    rng = np.random.default_rng(4)
    # Where names and sizes are: the beginning, around names, and the end.
    near_names = [
        found.start() + int(rng.integers(-24, 30)) for found in re.finditer(rb"blocks\.|blk\.", data)
    ]
    places = [
        *range(24),
        *rng.choice(near_names, 150).tolist(),
        *(len(data) - rng.integers(1, 6000, 100)).tolist(),
    ]
    refused = read = 0
    for place in places:
        kept = data[place]
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        data[place] = kept
        try:
            load(path)
        except CheckpointError as error:
            refused += str(path) in str(error)
        else:
            read += 1
    assert refused + read == len(places)
    assert refused > 50


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_trailing_bytes(tmp_path: Path, whole: dict[str, bytes], suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(whole[suffix] + b"\0" * 70_000)
    with pytest.raises(CheckpointError):
        load(path)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "is empty"),
        (b"GGUF\3\0\0\0", "truncated"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before 1.6"),
        (b"\x93NUMPY\1\0", "no checkpoint format"),
        (b"hello, world, this is text", "no checkpoint format"),
    ],
)
def test_wrong_magic_is_explained(tmp_path: Path, head: bytes, reason: str) -> None:
    for suffix in (".pth", ".safetensors", ".bin", ""):
        path = tmp_path / f"m{suffix}"
        path.write_bytes(head)
        with pytest.raises(CheckpointError, match=reason):
            load(path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="folder without a model"):
        load(tmp_path)


def test_unknown_dtypes_of_safetensors_are_named(tmp_path: Path, make_model: MakeModel) -> None:
    tensors = make_model("4").tensors | {"ln_out.bias": np.zeros(32, np.int64)}
    safetensors.numpy.save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="I64") as caught:
        load(tmp_path / "m.safetensors")
    assert caught.value.tensor == "ln_out.bias"


def test_a_broken_specification_in_the_metadata_is_named(tmp_path: Path, make_model: MakeModel) -> None:
    path = tmp_path / "m.safetensors"
    for text in ("{", '{"format": 9, "tokenizer": {}}', "[" * 100_000):
        safetensors.numpy.save_file(make_model("4").tensors, path, metadata={"rookery": text})
        with pytest.raises(CheckpointError, match="tokenizer specification"):
            load(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nan_is_refused_on_request(tmp_path: Path, make_model: MakeModel, suffix: str) -> None:
    model = make_model("5.0", "float16")
    model.tensors["blocks.1.att.time_decay"][1] = np.nan
    save(model, tmp_path / f"m{suffix}")
    load(tmp_path / f"m{suffix}")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.att\.time_decay.*not finite"):
        load(tmp_path / f"m{suffix}", check_finite=True)


def test_huggingface_weights_without_their_folder(tmp_path: Path, make_model: MakeModel) -> None:
    save_huggingface(make_model("4"), tmp_path)
    with pytest.raises(CheckpointError, match="load the folder"):
        load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "rwkv6"}, "model_type"),
        ({"model_type": "llama"}, "model_type"),
        ({"model_type": ["rwkv"]}, "model_type"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
    ],
)
def test_huggingface_models_of_other_kinds(
    tmp_path: Path, make_model: MakeModel, change: dict[str, object], reason: str
) -> None:
    save_huggingface(make_model("4"), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(CheckpointError, match=reason):
        load(tmp_path)
