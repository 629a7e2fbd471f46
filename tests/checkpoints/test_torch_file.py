"""`.pth` files against torch itself, and files that try to run code."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from rookery.checkpoints import Checkpoint, load, save
from rookery.checkpoints.tensor_pickle import UnreadablePickleError, load_tensors
from rookery.checkpoints.torch_file import read_torch
from rookery.errors import CheckpointError

MakeModel = Callable[..., Checkpoint]
AssertSame = Callable[[Checkpoint, Checkpoint], None]


def _to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _state_dict(model: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: _to_torch(tensor) for name, tensor in model.tensors.items()}


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_what_we_write(
    tmp_path: Path, make_model: MakeModel, version: str, dtype: str, mapped: bool
) -> None:
    model = make_model(version, dtype)
    save(model, tmp_path / "m.pth")
    theirs = torch.load(tmp_path / "m.pth", weights_only=True, mmap=mapped)
    assert list(theirs) == list(model.tensors)
    for name, tensor in _state_dict(model).items():
        assert theirs[name].dtype == tensor.dtype
        assert theirs[name].is_contiguous()
        assert torch.equal(theirs[name], tensor)


def test_storages_are_aligned_as_torch_aligns_them(tmp_path: Path, make_model: MakeModel) -> None:
    save(make_model("7", "bfloat16"), tmp_path / "m.pth")
    tensors = load(tmp_path / "m.pth").tensors
    base = {tensor.ctypes.data % 64 for tensor in tensors.values()}
    assert base == {0}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["dict", "ordered", "parameters"])
def test_we_read_what_torch_writes(
    tmp_path: Path,
    make_model: MakeModel,
    assert_same: AssertSame,
    version: str,
    dtype: str,
    kind: str,
    protocol: int,
) -> None:
    model = make_model(version, dtype)
    state: Any = _state_dict(model)
    if kind == "ordered":
        state = OrderedDict(state)
        state._metadata = OrderedDict({"": {"version": 1}})
    elif kind == "parameters":
        state = {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}
    torch.save(state, tmp_path / "m.pth", pickle_protocol=protocol)
    assert_same(model, load(tmp_path / "m.pth"))


def test_a_modules_state_dict_is_read(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 5)
    torch.save(layer.state_dict(), tmp_path / "m.pth")
    tensors = read_torch(tmp_path / "m.pth")
    np.testing.assert_array_equal(tensors["weight"], layer.weight.detach().numpy())


def test_views_of_shared_storages_are_read(tmp_path: Path) -> None:
    whole = torch.arange(60.0)
    views = {
        "all": whole,
        "offset": whole[7:19].view(3, 4),
        "transposed": whole.view(6, 10).t(),
        "strided": whole.view(6, 10)[1::2, ::3],
        "permuted": whole.view(3, 4, 5).permute(2, 0, 1),
        "scalar": whole[5],
    }
    torch.save(views, tmp_path / "m.pth")
    read = read_torch(tmp_path / "m.pth")
    assert list(read) == list(views)
    for name, view in views.items():
        np.testing.assert_array_equal(read[name], view.numpy())
        assert read[name].flags.c_contiguous
    assert np.shares_memory(read["all"], read["offset"])


def test_compressed_entries_are_read(tmp_path: Path, make_model: MakeModel, assert_same: AssertSame) -> None:
    model = make_model("6", "bfloat16")
    save(model, tmp_path / "m.pth")
    _rewrite(tmp_path / "m.pth", lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert_same(model, load(tmp_path / "m.pth"))


def test_big_endian_files_are_read(tmp_path: Path, make_model: MakeModel, assert_same: AssertSame) -> None:
    model = make_model("4", "float32")
    save(model, tmp_path / "m.pth")

    def swap(name: str, data: bytes) -> bytes:
        if name.endswith("byteorder"):
            return b"big"
        return np.frombuffer(data, ">f4").astype("<f4").tobytes() if "/data/" in name else data

    _rewrite(tmp_path / "m.pth", swap, zipfile.ZIP_STORED)
    assert_same(model, load(tmp_path / "m.pth"))


def _rewrite(path: Path, change: Callable[[str, bytes], bytes | None], compression: int) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            if data is not None:
                archive.writestr(name, data)


def test_a_storage_that_is_missing_or_short_is_named(tmp_path: Path, make_model: MakeModel) -> None:
    for change in (lambda data: None, lambda data: data[:-4], lambda data: data + b"\0\0\0\0"):
        save(make_model("4"), tmp_path / "m.pth")
        _rewrite(
            tmp_path / "m.pth",
            lambda name, data, change=change: change(data) if name.endswith("data/3") else data,
            zipfile.ZIP_STORED,
        )
        with pytest.raises(CheckpointError, match="storage data/3") as caught:
            load(tmp_path / "m.pth")
        assert caught.value.tensor == "blocks.0.ln2.weight"


def test_zip_files_of_other_programs_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.ones(3))
    with pytest.raises(CheckpointError, match=r"no data\.pkl"):
        load(tmp_path / "m.npz")


def test_old_torch_files_are_refused_with_what_to_do(tmp_path: Path, make_model: MakeModel) -> None:
    torch.save(_state_dict(make_model("4")), tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6.*torch\.save\(torch\.load"):
        load(tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (
            {"_strategy": "cpu fp32", "_version": "0.7", "_rescale_layer": 0},
            "converted by the `rwkv` package",
        ),
        ({"optimizer": {"step": 3}}, "holds a dict under 'optimizer'"),
        ({"step": torch.tensor([3])}, "int64"),
        ({7: torch.ones(3)}, "under 7"),
    ],
)
def test_files_with_more_than_tensors_are_refused(
    tmp_path: Path, make_model: MakeModel, extra: dict[Any, Any], reason: str
) -> None:
    torch.save(_state_dict(make_model("4")) | extra, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=reason):
        load(tmp_path / "m.pth")


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"names torch\.nn\.modules\.linear\.Linear"):
        load(tmp_path / "m.pth")
    torch.save([torch.ones(2)], tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        load(tmp_path / "m.pth")


class _Attack:
    """Pickles to a call of ``function(*arguments)``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _attacks(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that make the file ``marker`` when ``pickle.loads`` runs them, and the global each names."""
    command = f"touch '{marker}'"
    code = f"open({str(marker)!r}, 'w').close()"
    instance = f"(S{command!r}\nios\nsystem\n.".encode()
    get_attribute = b"c__builtin__\ngetattr\n(cos\nX\x06\x00\x00\x00systemtR."
    return {
        "system": (pickle.dumps(_Attack(os.system, command), 2), f"{os.name}.system"),
        "stacked": (pickle.dumps(_Attack(os.system, command), 4), f"{os.name}.system"),
        "eval": (pickle.dumps(_Attack(eval, code), 2), "__builtin__.eval"),
        "exec": (pickle.dumps({"emb.weight": _Attack(exec, code)}, 5), "builtins.exec"),
        "path": (pickle.dumps(_Attack(Path.touch, marker), 4), "getattr|pathlib|builtins"),
        "instance": (instance, "INST"),
        "getattr": (get_attribute, "__builtin__.getattr"),
        "torch": (b"ctorch\nload\n(X\x01\x00\x00\x00xtR.", "torch.load"),
        "lookalike": (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "__globals__"),
    }


@pytest.mark.parametrize("name", list(_attacks(Path())))
def test_code_in_a_file_does_not_run(tmp_path: Path, make_model: MakeModel, name: str) -> None:
    marker = tmp_path / "marker"
    attack, named = _attacks(marker)[name]
    path = tmp_path / "m.pth"
    save(make_model("4"), path)
    _rewrite(path, lambda name, data: attack if name.endswith("data.pkl") else data, zipfile.ZIP_STORED)
    with pytest.raises(CheckpointError, match=named) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["system", "stacked", "eval", "exec", "path", "instance"])
def test_the_attacks_above_would_work(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    pickle.loads(_attacks(marker)[name][0])
    assert marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02}",
        b"(.",
        b"(t",
        b"0.",
        b"\x80\x02}}s.",
        b"\x80\x02}(}N",
        b"\x80\x02}(}Nu.",
        b"\x80\x02]}Ns.",
        b"\x80\x02}q\x00h\x05.",
        b"ccollections\nOrderedDict\nNR.",
        b"NNR.",
        b"NNb.",
        b"NQ.",
        b"(X\x07\x00\x00\x00storageNNNNtQ.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.",
        b"ctorch._utils\n_rebuild_parameter\n(NtR.",
        b"ccollections\nOrderedDict\n(NtR.",
        b"NN\x93.",
        b"\xff",
        b"(" * 100_000,
    ],
)
def test_broken_pickles_raise_one_error(data: bytes) -> None:
    with pytest.raises(UnreadablePickleError, match=r"pickle"):
        load_tensors(data)


def test_a_view_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    expanded = torch.ones(1).expand(10**9)
    torch.save({"emb.weight": expanded}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="does not fit into its storage") as caught:
        load(tmp_path / "m.pth")
    assert caught.value.tensor == "emb.weight"
