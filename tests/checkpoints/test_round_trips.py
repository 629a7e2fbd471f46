"""What is saved comes back bit for bit, in all versions and formats; a failed write changes nothing."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import safetensors.numpy

from rookery.checkpoints import Checkpoint, load, optional_shapes, save, save_huggingface
from rookery.errors import CheckpointError

MakeModel = Callable[..., Checkpoint]
AssertSame = Callable[[Checkpoint, Checkpoint], None]

SUFFIXES = (".safetensors", ".pth")
TOKENIZER = {"kind": "json", "json": '{"a": "\\u00e9"}'}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_round_trip(
    tmp_path: Path, make_model: MakeModel, assert_same: AssertSame, version: str, dtype: str, suffix: str
) -> None:
    model = make_model(version, dtype, tokenizer=TOKENIZER)
    save(model, tmp_path / f"model{suffix}")
    loaded = load(tmp_path / f"model{suffix}", check_finite=True)
    assert_same(model, loaded)
    assert loaded.path == tmp_path / f"model{suffix}"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_bit_pattern_survives(
    tmp_path: Path, make_model: MakeModel, assert_same: AssertSame, dtype: str, suffix: str
) -> None:
    # NaNs with payloads, infinities, subnormals, negative zero.
    model = make_model("7", dtype)
    for name, tensor in model.tensors.items():
        bits = np.random.default_rng(1).integers(0, 256, tensor.nbytes, np.uint8)
        model.tensors[name] = bits.view(tensor.dtype).reshape(tensor.shape)
    save(model, tmp_path / f"m{suffix}")
    assert_same(model, load(tmp_path / f"m{suffix}"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_mixed_dtypes_and_views_round_trip(
    tmp_path: Path, make_model: MakeModel, assert_same: AssertSame, suffix: str
) -> None:
    model = make_model("7", "bfloat16")
    model.tensors["blocks.0.att.w0"] = model.tensors["blocks.0.att.w0"].astype(np.float32)
    model.tensors["blocks.1.ffn.x_k"] = model.tensors["blocks.1.ffn.x_k"].astype(np.float16)
    model.tensors["emb.weight"] = np.asfortranarray(model.tensors["emb.weight"])
    model.tensors["head.weight"] = np.concatenate([model.tensors["head.weight"]] * 2)[::2]
    for name, shape in optional_shapes(model.config).items():
        model.tensors[name] = np.ones(shape, np.float32)
    save(model, tmp_path / f"m{suffix}")
    loaded = load(tmp_path / f"m{suffix}")
    assert sorted(loaded.tensors) == sorted(model.tensors)
    for name, tensor in model.tensors.items():
        assert loaded.tensors[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_loading_maps_the_file(tmp_path: Path, make_model: MakeModel, suffix: str) -> None:
    save(make_model("7", "bfloat16"), tmp_path / f"m{suffix}")
    for name, tensor in load(tmp_path / f"m{suffix}").tensors.items():
        assert not tensor.flags.owndata, name
        assert not tensor.flags.writeable, name


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_models_give_equal_files(tmp_path: Path, make_model: MakeModel, suffix: str) -> None:
    for name in ("a", "b"):
        save(make_model("6"), tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_a_mapped_file_can_be_saved_over(
    tmp_path: Path, make_model: MakeModel, assert_same: AssertSame
) -> None:
    path = tmp_path / "m.safetensors"
    model = make_model("7")
    save(model, path)
    save(load(path), path)
    assert_same(model, load(path))


def test_the_safetensors_package_reads_it(tmp_path: Path, make_model: MakeModel, dtype: str) -> None:
    model = make_model("7", dtype)
    save(model, tmp_path / "m.safetensors")
    theirs = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert sorted(theirs) == sorted(model.tensors)
    for name, tensor in theirs.items():
        assert tensor.dtype == model.tensors[name].dtype
        assert tensor.tobytes() == model.tensors[name].tobytes()


def test_it_reads_what_the_safetensors_package_writes(
    tmp_path: Path, make_model: MakeModel, assert_same: AssertSame, dtype: str
) -> None:
    model = make_model("7", dtype)
    safetensors.numpy.save_file(model.tensors, tmp_path / "m.safetensors")
    assert_same(model, load(tmp_path / "m.safetensors"))


def test_a_run_folder_is_loaded(tmp_path: Path, make_model: MakeModel, assert_same: AssertSame) -> None:
    model = make_model("5.1", tokenizer={"kind": "bytes"})
    save(model, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"learning_rate": 0.1}')
    assert_same(model, load(tmp_path))


def test_the_tokenizer_of_a_pth_goes_with_its_model(tmp_path: Path, make_model: MakeModel) -> None:
    path = tmp_path / "rwkv-0.1b.pth"
    save(make_model("4", tokenizer=TOKENIZER), path)
    held = json.loads((tmp_path / "rwkv-0.1b.tokenizer.json").read_text())
    assert held == {"format": 1, "tokenizer": TOKENIZER}
    save(make_model("4"), path)
    assert load(path).tokenizer is None


@pytest.mark.parametrize("text", ["{", '{"format": 2}', '{"format": 1, "tokenizer": 3}', "[]", "\xff"])
def test_a_broken_tokenizer_beside_a_pth_is_named(tmp_path: Path, make_model: MakeModel, text: str) -> None:
    save(make_model("4"), tmp_path / "m.pth")
    (tmp_path / "m.tokenizer.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"m\.(tokenizer\.json|pth)"):
        load(tmp_path / "m.pth")


@pytest.mark.parametrize("name", ["model.bin", "model", "model.SAFETENSORS"])
def test_an_unknown_suffix_is_refused(tmp_path: Path, make_model: MakeModel, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"\.safetensors, \.pth"):
        save(make_model("4"), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_whole_model_is_not_written(tmp_path: Path, make_model: MakeModel, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    model = make_model("7")
    other = make_model("7", vocab_size=72)
    with pytest.raises(CheckpointError, match=r"(head|emb)\.weight"):
        save(Checkpoint(config=model.config, tensors=other.tensors), path)
    del model.tensors["ln_out.bias"]
    with pytest.raises(CheckpointError, match=r"ln_out\.bias"):
        save(model, path)
    assert not list(tmp_path.iterdir())


class _FullDisk:
    """A file on a disk that takes some bytes and no more."""

    def __init__(self, file: BinaryIO, room: int):
        self._file = file
        self._room = room

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._room -= size
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 100, 9_000, 40_000])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path,
    make_model: MakeModel,
    assert_same: AssertSame,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    room: int,
) -> None:
    path = tmp_path / f"m{suffix}"
    old = make_model("4", tokenizer={"kind": "bytes"})
    save(old, path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    real = __import__("os").fdopen
    monkeypatch.setattr("rookery.files.os.fdopen", lambda *a: _Closing(_FullDisk(real(*a), room)))
    with pytest.raises(
        CheckpointError, match=r"No space left on device; the file that was there is untouched"
    ):
        save(make_model("7"), path)
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert_same(old, load(path))


class _Closing:
    """Makes a wrapped file a context manager."""

    def __init__(self, file: _FullDisk):
        self._file = file

    def __enter__(self) -> _FullDisk:
        return self._file

    def __exit__(self, *_: object) -> None:
        self._file.close()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"m{suffix}"
    save(make_model("4"), path)
    before = path.read_bytes()
    calls = 0
    real = np.ascontiguousarray

    def interrupted(array: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise KeyboardInterrupt
        return real(array)

    monkeypatch.setattr(np, "ascontiguousarray", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(make_model("7"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_said(tmp_path: Path, make_model: MakeModel) -> None:
    with pytest.raises(CheckpointError, match="cannot be written: No such file"):
        save(make_model("4"), tmp_path / "absent" / "m.pth")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be made"):
        save_huggingface(make_model("4"), tmp_path / "file")
