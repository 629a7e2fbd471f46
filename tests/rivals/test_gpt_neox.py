"""Attention as GPT-NeoX against transformers' own model with the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from rookery.errors import CheckpointError
from rookery.rivals import build, load, load_tokenizer
from rookery.rivals.gpt_neox import load_gpt_neox

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}


def theirs(**options: Any) -> GPTNeoXForCausalLM:
    """Random weights, larger than the library's own, so that a mistake about any shows."""
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "layernorm.weight" in name or "layer_norm.weight" in name
            parameter.copy_(norm + 0.3 * torch.randn(parameter.shape))
    return model


def tokens_of(*shape: int) -> Tensor:
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(0))


def saved(model: GPTNeoXForCausalLM, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_parallel_residual": False, "layer_norm_eps": 1e-3},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0}},
    {"attention_bias": False},
    {"tie_word_embeddings": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options), "pythia"))
def test_logits_and_gradients_are_those_of_transformers(tmp_path, options: dict[str, Any]):
    model = theirs(**options)
    ours = load(saved(model, tmp_path))
    tokens = tokens_of(2, 21)
    wanted = model(tokens).logits
    logits, state = ours(tokens)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    for output in (wanted, logits):
        F.cross_entropy(output[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    wanted_of = dict(model.named_parameters())
    assert ours.num_parameters >= sum(p.numel() for p in wanted_of.values())
    if options.get("tie_word_embeddings"):
        both = ours.emb.weight.grad + ours.head.weight.grad
        torch.testing.assert_close(both, wanted_of["gpt_neox.embed_in.weight"].grad, rtol=1e-4, atol=1e-4)
        return
    names = {"emb": "gpt_neox.embed_in", "head": "lm_head", "ln_out": "gpt_neox.final_layer_norm"}
    for layer in range(3):
        names |= {
            f"blocks.{layer}.ln1": f"gpt_neox.layers.{layer}.input_layernorm",
            f"blocks.{layer}.ln2": f"gpt_neox.layers.{layer}.post_attention_layernorm",
            f"blocks.{layer}.att.output": f"gpt_neox.layers.{layer}.attention.dense",
            f"blocks.{layer}.ffn.key": f"gpt_neox.layers.{layer}.mlp.dense_h_to_4h",
            f"blocks.{layer}.ffn.value": f"gpt_neox.layers.{layer}.mlp.dense_4h_to_h",
        }
    for name, parameter in ours.named_parameters():
        module, part = name.rsplit(".", 1)
        if module in names:
            gradient = wanted_of[f"{names[module]}.{part}"].grad
        else:
            layer, which = int(name.split(".")[1]), ("query", "key", "value").index(module.rsplit(".", 1)[1])
            fused = wanted_of[f"gpt_neox.layers.{layer}.attention.query_key_value.{part}"].grad
            gradient = fused.unflatten(0, (4, 3, 8))[:, which].flatten(0, 1)
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4, msg=name)
    # One token at a time, from the state.
    more = tokens_of(2, 3) + 0
    with torch.no_grad():
        wanted = model(torch.cat((tokens, more), dim=1)).logits[:, -3:]
        for t in range(3):
            logits, state = ours(more[:, t : t + 1], state)
            torch.testing.assert_close(logits[:, 0], wanted[:, t], rtol=1e-4, atol=1e-4)


def test_shards_torch_files_and_buffers_of_older_files(tmp_path):
    model = theirs()
    tokens = tokens_of(1, 9)
    wanted, _ = load(saved(model, tmp_path / "whole"))(tokens)
    sharded = saved(model, tmp_path / "shards", max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    older = tmp_path / "older"
    older.mkdir()
    settings = json.loads((tmp_path / "whole" / "config.json").read_text())
    rotary = settings.pop("rope_parameters")
    settings |= {"rotary_pct": rotary["partial_rotary_factor"], "rotary_emb_base": rotary["rope_theta"]}
    (older / "config.json").write_text(json.dumps(settings))
    tensors = dict(model.state_dict())
    for layer in range(3):
        prefix = f"gpt_neox.layers.{layer}.attention."
        tensors[f"{prefix}bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        tensors[f"{prefix}masked_bias"] = torch.tensor(-1e9)
        tensors[f"{prefix}rotary_emb.inv_freq"] = torch.ones(1)
    torch.save(tensors, older / "pytorch_model.bin")
    newer = shutil.copytree(older, tmp_path / "newer", ignore=shutil.ignore_patterns("*.bin"))
    from safetensors.torch import save_file

    save_file({name: tensor.clone() for name, tensor in tensors.items()}, newer / "model.safetensors")
    for folder in (sharded, older, newer):
        assert torch.equal(load(folder)(tokens)[0], wanted)
        assert load_tokenizer(folder) is None
    half = load(tmp_path / "whole", dtype=torch.bfloat16)
    assert half.head.weight.dtype == torch.bfloat16
    assert half(tokens)[0].dtype == torch.bfloat16


def test_a_model_of_this_shape_can_be_initialised(tmp_path):
    loaded = load(saved(theirs(), tmp_path))
    model = build(loaded.config, seed=3)
    assert model(tokens_of(1, 5))[0].isfinite().all()


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not ...}))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu' is supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"rope_parameters": 3}, "rope_parameters is 3"),
        ({"rope_parameters": {"partial_rotary_factor": "x"}}, "no configuration of a GPT-NeoX"),
        ({"hidden_size": ...}, "hidden_size is None, expected a positive integer"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"num_attention_heads": 2, "vocab_size": 60}, "has shape"),
        ({"num_hidden_layers": 2}, "is surplus"),
        ({"num_hidden_layers": 4}, "is missing"),
        ({"hidden_size": 64}, "expected 192 rows"),
        ({"attention_bias": False}, "is surplus"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(tmp_path, changes: dict[str, Any], problem: str):
    folder = saved(theirs(), tmp_path)
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=problem):
        load(folder)


def test_folders_without_the_files_are_refused(tmp_path):
    folder = saved(theirs(), tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load(folder)
    edit(folder, model_type="opt")
    with pytest.raises(CheckpointError, match="its model_type is 'opt', expected 'gpt_neox'"):
        load_gpt_neox(folder)
    with pytest.raises(CheckpointError, match="model_type is 'opt'"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(folder)
