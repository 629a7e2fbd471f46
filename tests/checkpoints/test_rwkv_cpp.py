"""rwkv.cpp files: what its converter bakes in is undone."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rookery.checkpoints import Checkpoint, load
from rookery.errors import CheckpointError

MakeModel = Callable[..., Checkpoint]


def _baked(model: Checkpoint) -> dict[str, np.ndarray]:
    """What rwkv.cpp keeps of each tensor, float32, by the rules of its converter."""
    version = model.config.version
    baked: dict[str, np.ndarray] = {}
    for name, tensor in model.tensors.items():
        block, _, leaf = name.rpartition(".")
        if ".time_" in name:
            tensor = tensor.squeeze()
        if version == "7" and leaf in {"w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2"}:
            tensor = tensor.T
        if version == "7" and ".att.x_" in name:
            fused = f"{block}.x_rwkvag"
            baked[fused] = np.concatenate([baked[fused], tensor]) if fused in baked else tensor
            continue
        if version == "6" and leaf in {"time_maa_w1", "time_decay_w1", "time_decay_w2", "time_maa_w2"}:
            tensor = tensor.swapaxes(-1, -2)
        if leaf == "time_faaaa":
            tensor = tensor[..., None]
        if leaf == "time_first" and version != "4":
            tensor = np.exp(tensor).reshape(-1, 1, 1)
        if leaf == "time_decay":
            tensor = _baked_decay(tensor, model)
        baked[name] = tensor
    return baked


def _baked_decay(decay: np.ndarray, model: Checkpoint) -> np.ndarray:
    match model.config.version:
        case "4":
            return -np.exp(decay)
        case "5.0":
            return np.exp(-np.exp(decay)).reshape(-1, 1, 1)
        case "6":
            return decay.reshape(model.config.num_heads, -1, 1)
    return np.exp(-np.exp(decay))[..., None]


def _encode(model: Checkpoint, tensors: dict[str, np.ndarray], *, half: bool = False, **header: int) -> bytes:
    config = model.config
    fields = {"magic": 0x67676D66, "version": 101, "vocab": config.vocab_size, "width": config.width}
    fields |= {"layers": config.num_layers, "dtype": int(half)}
    parts = [struct.pack("<6i", *(fields | header).values())]
    for name, tensor in tensors.items():
        is_half = half and name.endswith(".weight") and tensor.ndim == 2
        data = np.ascontiguousarray(tensor, np.float16 if is_half else np.float32)
        parts += [
            struct.pack("<3i", data.ndim, len(name), int(is_half)),
            struct.pack(f"<{data.ndim}i", *data.shape[::-1]),
        ]
        parts += [name.encode(), data.tobytes()]
    return b"".join(parts)


def _logarithms(version: str, name: str) -> bool:
    """Whether a tensor comes back through a logarithm."""
    return version in ("4", "5.0", "5.1", "5.2") and (
        name.endswith("time_decay") or (version != "4" and name.endswith("time_first"))
    )


@pytest.mark.parametrize("sizes", [{}, {"head_size": 32}])
@pytest.mark.parametrize("half", [False, True])
def test_a_file_comes_back_as_the_official_tensors(
    tmp_path: Path, make_model: MakeModel, version: str, half: bool, sizes: dict[str, Any]
) -> None:
    model = make_model(version, **({} if version == "4" else sizes))
    path = tmp_path / "m.bin"
    path.write_bytes(_encode(model, _baked(model), half=half))
    loaded = load(path, check_finite=True)
    assert loaded.config == model.config
    assert list(loaded.tensors) == list(model.tensors)
    for name, tensor in model.tensors.items():
        read = loaded.tensors[name]
        assert read.shape == tensor.shape, name
        if _logarithms(version, name):
            np.testing.assert_allclose(read, tensor, atol=2e-6, rtol=2e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(read, tensor.astype(read.dtype), err_msg=name)
    matrices = {str(t.dtype) for n, t in loaded.tensors.items() if n.endswith("key.weight")}
    assert matrices == {"float16" if half else "float32"}


@pytest.mark.parametrize("version", ["4", "5.2"])
def test_decays_round_as_rwkv_cpp_rounded_them(tmp_path: Path, make_model: MakeModel, version: str) -> None:
    model = make_model(version)
    decay = model.tensors["blocks.0.att.time_decay"]
    decay.reshape(-1)[:] = np.linspace(-25, 5.5, decay.size, dtype=np.float32)
    decay.reshape(-1)[:2] = (-110, 80)
    with np.errstate(over="ignore"):
        baked = _baked(model)
        (tmp_path / "m.bin").write_bytes(_encode(model, baked))
        loaded = load(tmp_path / "m.bin", check_finite=True)
        again = _baked(loaded)
    name = "blocks.0.att.time_decay"
    extremes = (baked[name] == 0) | (baked[name] == 1)
    assert extremes.any()
    np.testing.assert_array_equal(again[name][extremes], baked[name][extremes])
    np.testing.assert_allclose(again[name], baked[name], rtol=1e-4, atol=1e-37)
    if version == "5.2":
        np.testing.assert_allclose(again[name], baked[name], atol=2e-7, rtol=0)


def test_first_that_underflowed_stays_finite(tmp_path: Path, make_model: MakeModel) -> None:
    model = make_model("5.0")
    model.tensors["blocks.0.att.time_first"][0] = -200
    (tmp_path / "m.bin").write_bytes(_encode(model, _baked(model)))
    first = load(tmp_path / "m.bin", check_finite=True).tensors["blocks.0.att.time_first"]
    assert np.exp(first)[0] == 0


@pytest.mark.parametrize(
    ("file", "version", "layers", "width"),
    [("tiny-rwkv-4v0-660K-FP32.bin", "4", 4, 128), ("tiny-rwkv-5v1-730K-FP32.bin", "5.0", 12, 64)],
)
def test_the_samples_are_read(shared_data: Path, file: str, version: str, layers: int, width: int) -> None:
    loaded = load(shared_data / "rwkv.cpp" / file, check_finite=True)
    config = loaded.config
    assert (config.version, config.num_layers, config.width) == (version, layers, width)
    assert config.vocab_size == 256
    rates = np.concatenate([t.reshape(-1) for n, t in loaded.tensors.items() if n.endswith("time_decay")])
    assert (np.abs(rates) < 1.5).all()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"version": 99}, "format 99"),
        ({"dtype": 2}, "Q4_0"),
        ({"dtype": 7}, "Q5_0"),
        ({"dtype": 9}, "Q8_0"),
        ({"dtype": 77}, "unknown dtype 77"),
        ({"vocab": 70}, r"emb\.weight.*header says \(70, 32\)"),
        ({"layers": 3}, "has 2 layers, but its header says 3"),
    ],
)
def test_wrong_headers_are_named(
    tmp_path: Path, make_model: MakeModel, header: dict[str, int], reason: str
) -> None:
    model = make_model("4")
    (tmp_path / "m.bin").write_bytes(_encode(model, _baked(model), **header))
    with pytest.raises(CheckpointError, match=reason):
        load(tmp_path / "m.bin")


def test_a_quantized_tensor_is_named(tmp_path: Path, make_model: MakeModel) -> None:
    model = make_model("4")
    data = _encode(model, {"emb.weight": model.tensors["emb.weight"]})
    data += struct.pack("<3i2i", 2, 11, 8, 32, 71) + b"head.weight"
    (tmp_path / "m.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match="Q5_1") as caught:
        load(tmp_path / "m.bin")
    assert caught.value.tensor == "head.weight"


@pytest.mark.parametrize(
    ("version", "value"), [("4", 0.5), ("4", np.nan), ("5.0", -0.1), ("5.2", 1.5), ("5.2", np.nan)]
)
def test_decays_that_no_weight_gives_are_refused(
    tmp_path: Path, make_model: MakeModel, version: str, value: float
) -> None:
    model = make_model(version)
    baked = _baked(model)
    baked["blocks.1.att.time_decay"].reshape(-1)[3] = value
    (tmp_path / "m.bin").write_bytes(_encode(model, baked))
    with pytest.raises(CheckpointError, match="outside") as caught:
        load(tmp_path / "m.bin")
    assert caught.value.tensor == "blocks.1.att.time_decay"


def test_a_missing_tensor_is_named(tmp_path: Path, make_model: MakeModel) -> None:
    model = make_model("7")
    baked = _baked(model)
    del baked["blocks.1.att.x_rwkvag"]
    (tmp_path / "m.bin").write_bytes(_encode(model, baked))
    with pytest.raises(CheckpointError, match="missing") as caught:
        load(tmp_path / "m.bin")
    assert caught.value.tensor == "blocks.1.att.x_r"
