"""Hugging Face folders, against transformers where it has the model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from rookery.checkpoints import Checkpoint, load, optional_shapes, save_huggingface
from rookery.errors import CheckpointError

MakeModel = Callable[..., Checkpoint]
AssertSame = Callable[[Checkpoint, Checkpoint], None]

SEVEN = {"width": 128, "head_size": 64}


def _make(make_model: MakeModel, version: str, dtype: str = "float32", tokenizer: Any = None) -> Checkpoint:
    return make_model(version, dtype, tokenizer, **(SEVEN if version == "7" else {}))


@pytest.mark.parametrize("version", ["4", "7"])
@pytest.mark.parametrize("tokenizer", [None, {"kind": "world"}, {"kind": "json", "json": '{"a": "é"}'}])
def test_folders_round_trip(
    tmp_path: Path, make_model: MakeModel, assert_same: AssertSame, version: str, dtype: str, tokenizer: Any
) -> None:
    model = _make(make_model, version, dtype, tokenizer)
    save_huggingface(model, tmp_path / "new" / "folder")
    assert_same(model, load(tmp_path / "new" / "folder", check_finite=True))


def test_transformers_loads_the_same_weights(tmp_path: Path, make_model: MakeModel) -> None:
    from transformers import RwkvForCausalLM

    model = make_model("4")
    save_huggingface(model, tmp_path)
    theirs, report = RwkvForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert theirs.config.attention_hidden_size == 32
    weights = {_official_4(name): tensor.numpy() for name, tensor in theirs.state_dict().items()}
    assert sorted(weights) == sorted(model.tensors)
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(weights[name], tensor, err_msg=name)


def _official_4(name: str) -> str:
    """The official name of a tensor of transformers' RWKV-4, by replacing parts of it."""
    name = name.removeprefix("rwkv.")
    for theirs, ours in [
        ("embeddings.", "emb."),
        (".pre_ln.", ".ln0."),
        (".attention.", ".att."),
        (".feed_forward.", ".ffn."),
        ("time_mix_key", "time_mix_k"),
        ("time_mix_value", "time_mix_v"),
        ("time_mix_receptance", "time_mix_r"),
    ]:
        name = name.replace(theirs, ours)
    return name


@pytest.mark.parametrize("shard_size", ["1MB", "8KB"])
def test_what_transformers_saves_is_loaded(tmp_path: Path, shard_size: str) -> None:
    from transformers import RwkvConfig, RwkvForCausalLM

    torch.manual_seed(0)
    config = RwkvConfig(
        vocab_size=71, hidden_size=32, num_hidden_layers=2, attention_hidden_size=24, intermediate_size=40
    )
    theirs = RwkvForCausalLM(config)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "8KB")
    loaded = load(tmp_path)
    assert (loaded.config.version, loaded.config.attention_width) == ("4", 24)
    assert (loaded.config.width, loaded.config.ffn_width) == (32, 40)
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(loaded.tensors[_official_4(name)], tensor.numpy(), err_msg=name)


def test_pytorch_model_bin_and_its_shards_are_loaded(
    tmp_path: Path, make_model: MakeModel, assert_same: AssertSame
) -> None:
    model = make_model("4")
    save_huggingface(model, tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same(model, load(tmp_path))
    (tmp_path / "pytorch_model.bin").unlink()
    names = list(state)
    weight_map = {name: f"part-{place % 2}.bin" for place, name in enumerate(names)}
    for part in range(2):
        torch.save({n: state[n] for n in names[part::2]}, tmp_path / f"part-{part}.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_same(model, load(tmp_path))
    for shard in ("../part-0.bin", "/etc/passwd", 3):
        index.write_text(json.dumps({"weight_map": weight_map | {names[0]: shard}}))
        with pytest.raises(CheckpointError, match="no file of this folder"):
            load(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map | {names[0]: "part-1.bin"}}))
    with pytest.raises(CheckpointError, match="the index places it here"):
        load(tmp_path)


def test_fla_names_and_shapes(tmp_path: Path, make_model: MakeModel) -> None:
    model = _make(make_model, "7")
    save_huggingface(model, tmp_path)
    theirs = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    ours = model.tensors
    shapes = {
        "model.embeddings.weight": (71, 128),
        "model.norm.bias": (128,),
        "lm_head.weight": (71, 128),
        "model.layers.0.pre_norm.weight": (128,),
        "model.layers.1.attn_norm.weight": (128,),
        "model.layers.1.attn.x_r": (1, 1, 128),
        "model.layers.1.attn.k_k": (128,),
        "model.layers.1.attn.r_k": (2, 64),
        "model.layers.1.attn.w_lora.lora.0.weight": (3, 128),
        "model.layers.1.attn.w_lora.lora.2.weight": (128, 3),
        "model.layers.1.attn.w_lora.lora.2.bias": (128,),
        "model.layers.1.attn.v_lora.lora.0.weight": (7, 128),
        "model.layers.1.attn.g_lora.lora.2.weight": (128, 6),
        "model.layers.1.attn.g_norm.weight": (128,),
        "model.layers.1.ffn.x_k": (128,),
        "model.layers.1.ffn.key.weight": (40, 128),
    }
    assert {name: theirs[name].shape for name in shapes} == shapes
    np.testing.assert_array_equal(
        theirs["model.layers.0.attn.a_lora.lora.0.weight"], ours["blocks.0.att.a1"].T
    )
    np.testing.assert_array_equal(
        theirs["model.layers.1.attn.o_proj.weight"], ours["blocks.1.att.output.weight"]
    )
    assert not [
        name for name in theirs if re.search(r"layers\.0\..*v_lora|g_lora.*bias|layers\.1\.pre_norm", name)
    ]
    assert json.loads((tmp_path / "config.json").read_text())["v_low_rank_dim"] == 7


def test_older_fla_exports_with_fused_mixing(
    tmp_path: Path, make_model: MakeModel, assert_same: AssertSame
) -> None:
    model = _make(make_model, "7")
    save_huggingface(model, tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    for layer in range(2):
        prefix = f"model.layers.{layer}.attn.x_"
        tensors[f"{prefix}x"] = np.concatenate([tensors.pop(prefix + x).reshape(1, -1) for x in "rwkvag"])
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    assert_same(model, load(tmp_path))
    tensors["model.layers.1.attn.x_x"] = tensors["model.layers.1.attn.x_x"][:5].copy()
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"expected \(6, D\)"):
        load(tmp_path)


def test_tied_embeddings(tmp_path: Path, make_model: MakeModel) -> None:
    save_huggingface(make_model("4"), tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    del tensors["head.weight"]
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"head\.weight.*missing"):
        load(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    loaded = load(tmp_path).tensors
    np.testing.assert_array_equal(loaded["head.weight"], loaded["emb.weight"])


def test_unused_tensors_of_layer_0_are_left_out(
    tmp_path: Path, make_model: MakeModel, assert_same: AssertSame
) -> None:
    model = _make(make_model, "7")
    extra = {n: np.ones(shape, np.float32) for n, shape in optional_shapes(model.config).items()}
    save_huggingface(Checkpoint(config=model.config, tensors=model.tensors | extra), tmp_path)
    assert_same(model, load(tmp_path))


@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2", "6"])
def test_versions_without_a_model_there_are_refused(
    tmp_path: Path, make_model: MakeModel, version: str
) -> None:
    with pytest.raises(CheckpointError, match="transformers has RWKV-4 and fla RWKV-7"):
        save_huggingface(make_model(version), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_other_head_sizes_are_refused_for_fla(tmp_path: Path, make_model: MakeModel) -> None:
    with pytest.raises(CheckpointError, match="head size 8"):
        save_huggingface(make_model("7"), tmp_path / "m")
    save_huggingface(_make(make_model, "7"), tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    for layer in range(2):
        name = f"model.layers.{layer}.attn.r_k"
        tensors[name] = tensors[name].reshape(4, 32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="head size 32"):
        load(tmp_path)


def test_the_tokenizer_of_a_folder(tmp_path: Path, make_model: MakeModel) -> None:
    save_huggingface(make_model("4"), tmp_path)
    assert load(tmp_path).tokenizer is None
    (tmp_path / "rwkv_vocab_v20230424.txt").touch()
    assert load(tmp_path).tokenizer == {"kind": "world"}
    (tmp_path / "tokenizer.json").write_text("{}")
    assert load(tmp_path).tokenizer == {"kind": "json", "json": "{}"}
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load(tmp_path)


def test_a_folder_without_weights_or_with_surplus_ones(tmp_path: Path, make_model: MakeModel) -> None:
    save_huggingface(make_model("4"), tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    tensors["rwkv.blocks.0.attention.gate.weight"] = np.ones((32, 32), np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="surplus"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load(tmp_path)
