"""Hugging Face folders: transformers' RWKV-4 and flash-linear-attention's (fla) RWKV-7, read and written.

A folder holds ``config.json``, the weights (``model.safetensors`` or ``pytorch_model.bin``, whole or in
shards with an index), and perhaps ``tokenizer.json``. Sizes are read off the weights as everywhere;
``config.json`` says which model it is, and is checked for options under which it computes something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rookery.checkpoints import tokenizer_spec
from rookery.checkpoints.checkpoint import Checkpoint, assemble, checked_tensors
from rookery.checkpoints.name_maps import names
from rookery.checkpoints.quantized import dense
from rookery.checkpoints.safetensors_file import read_safetensors, write_safetensors
from rookery.checkpoints.saving import writing
from rookery.checkpoints.torch_file import read_torch
from rookery.config import ModelConfig
from rookery.errors import CheckpointError

__all__ = [
    "is_huggingface",
    "load_huggingface",
    "read_json",
    "read_tokenizer",
    "read_weights",
    "save_huggingface",
]

Ignore = Callable[[str], bool] | None

_VERSIONS = {"rwkv": "4", "rwkv7": "7", "rwkv7_fla": "7"}

# Options that change what a model computes, and the only value that is RWKV as published.
_REQUIRED: dict[str, dict[str, Any]] = {
    "4": {"layer_norm_epsilon": 1e-5},
    "7": {"norm_eps": 1e-5, "norm_first": True, "norm_bias": True, "hidden_act": "sqrelu", "attn": None},
}

# fla gives the norm over a head an epsilon of 1e-5 K; the published constant is 64e-5.
_FLA_HEAD_SIZE = 64

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_WORLD_VOCABULARY = "rwkv_vocab_v20230424.txt"


def is_huggingface(folder: Path) -> bool:
    """Whether a folder has a ``config.json`` that names a model type."""
    try:
        return "model_type" in read_json(folder / "config.json")
    except CheckpointError:
        return False


def load_huggingface(folder: Path) -> Checkpoint:
    """Load a folder of transformers' RWKV-4 or fla's RWKV-7.

    Raises:
        CheckpointError: the model is of another type or has options that RWKV has not, weights are missing,
            or a file is broken.
    """
    settings = read_json(folder / "config.json")
    model_type = settings.get("model_type")
    version = _VERSIONS.get(model_type) if isinstance(model_type, str) else None
    if version is None:
        raise CheckpointError(
            folder / "config.json",
            f"its model_type is {model_type!r}; {', '.join(_VERSIONS)} are read. Use the original .pth",
        )
    for option, value in _REQUIRED[version].items():
        if settings.get(option, value) != value:
            raise CheckpointError(
                folder / "config.json",
                f"{option} is {settings[option]!r}; RWKV-{version} has {value!r}",
            )
    there, metadata = read_weights(folder)
    if settings.get("tie_word_embeddings") is True:
        rows = names(version, 0)
        embedding = there.get(rows["emb.weight"].name)
        if embedding is not None:
            there.setdefault(rows["head.weight"].name, embedding)
    tensors = _to_official(there, version, folder)
    loaded = assemble(tensors, tokenizer=read_tokenizer(folder, metadata), path=folder)
    if loaded.config.version == "7":
        _check_fla(loaded.config, folder)
    return loaded


def save_huggingface(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Save a model as a folder for transformers (RWKV-4) or fla (RWKV-7).

    The unused ``att.v0 v1 v2`` of RWKV-7's layer 0 have no place there and are left out. A ``tokenizers``
    JSON is written as ``tokenizer.json``; any specification also goes into the metadata of the weights, where
    ``load`` finds it.

    Raises:
        CheckpointError: these libraries have no such model, or it would compute something else there, or the
            disk refuses.
    """
    folder = Path(folder)
    config = checkpoint.config
    if config.version not in _SETTINGS:
        raise CheckpointError(
            folder,
            f"is not written: for RWKV-{config.version} there is no Hugging Face model; "
            "transformers has RWKV-4 and fla RWKV-7. Save as .safetensors or .pth",
        )
    if config.version == "7":
        _check_fla(config, folder)
    tensors = checked_tensors(checkpoint, folder)
    there: dict[str, np.ndarray] = {}
    for name, row in names(config.version, config.num_layers).items():
        tensor = dense(tensors[name])
        if row.transposed:
            tensor = tensor.T
        there[row.name] = tensor.reshape(-1) if row.flat else tensor
    metadata = {"format": "pt", tokenizer_spec.METADATA_KEY: tokenizer_spec.encode(checkpoint.tokenizer)}
    settings = _SETTINGS[config.version](config) | {"torch_dtype": str(tensors["emb.weight"].dtype)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(folder, f"cannot be made: {error.strerror or error}") from error
    with writing(folder / "model.safetensors") as file:
        write_safetensors(file, there, metadata)
    with writing(folder / "config.json") as file:
        file.write((json.dumps(settings, indent=2) + "\n").encode())
    if checkpoint.tokenizer is not None and checkpoint.tokenizer.get("kind") == "json":
        with writing(folder / "tokenizer.json") as file:
            file.write(str(checkpoint.tokenizer["json"]).encode())


def _settings_4(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["RwkvForCausalLM"],
        "model_type": "rwkv",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "attention_hidden_size": config.attention_width,
        "intermediate_size": config.ffn_width,
        "layer_norm_epsilon": 1e-5,
        "context_length": 1024,
        "rescale_every": 6,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
        "use_cache": True,
    }


def _settings_7(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "hidden_ratio": config.ffn_width / config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.num_layers,
        "head_dim": config.head_size,
        "num_heads": config.num_heads,
        "value_dim": [config.attention_width] * config.num_layers,
        "decay_low_rank_dim": config.decay_rank,
        "a_low_rank_dim": config.iclr_rank,
        "v_low_rank_dim": config.value_rank,
        "gate_low_rank_dim": config.gate_rank,
        "attn": None,
        "attn_mode": "chunk",
        "hidden_act": "sqrelu",
        "norm_first": True,
        "norm_bias": True,
        "norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
        "use_cache": True,
    }


_SETTINGS: dict[str, Callable[[ModelConfig], dict[str, Any]]] = {"4": _settings_4, "7": _settings_7}


def _check_fla(config: ModelConfig, folder: Path) -> None:
    if config.head_size != _FLA_HEAD_SIZE:
        raise CheckpointError(
            folder,
            f"has head size {config.head_size}: fla's epsilon of the norm over a head is 1e-5 times the head "
            f"size, which is the published 64e-5 at head size {_FLA_HEAD_SIZE} alone; the model would "
            "compute something else",
        )
    if config.attention_width != config.width:
        raise CheckpointError(
            folder,
            f"has attention width {config.attention_width} at width {config.width}; in fla they are equal",
        )


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(path, f"holds a {type(values).__name__}, expected an object")
    return values


def read_weights(folder: Path, *, ignore: Ignore = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a folder under their own names, and the metadata of their file.

    Args:
        folder: with the weights whole or in shards.
        ignore: says of a tensor's name whether to pass over it, whatever it is.

    Raises:
        CheckpointError: there are none, or a file is broken.
    """
    for name in _WHOLE:
        if (folder / name).is_file():
            return _read_part(folder / name, ignore)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index, ignore), {}
    raise CheckpointError(folder, f"has a config.json but no weights; expected {' or '.join(_WHOLE)}")


def _read_part(path: Path, ignore: Ignore) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    if path.suffix == ".safetensors":
        return read_safetensors(path, ignore=ignore)
    return read_torch(path, ignore=ignore), {}


def _read_shards(index: Path, ignore: Ignore) -> dict[str, np.ndarray]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(index, "has no weight_map, which says where each tensor is")
    shards: dict[str, dict[str, np.ndarray]] = {}
    tensors: dict[str, np.ndarray] = {}
    for name, shard in weight_map.items():
        if ignore is not None and ignore(name):
            continue
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(index, f"points to {shard!r}, which is no file of this folder", tensor=name)
        if shard not in shards:
            shards[shard] = _read_part(index.parent / shard, ignore)[0]
        if name not in shards[shard]:
            raise CheckpointError(
                index.parent / shard, "is missing, but the index places it here", tensor=name
            )
        tensors[name] = shards[shard][name]
    return tensors


def _to_official(there: dict[str, np.ndarray], version: str, folder: Path) -> dict[str, np.ndarray]:
    there = _split_fused_mixing(there, folder) if version == "7" else there
    layers = {
        int(match[1]) for name in there if (match := re.search(r"\.(?:blocks|layers)\.(\d{1,6})\.", name))
    }
    rows = names(version, len(layers))
    surplus = [name for name in there if name not in {row.name for row in rows.values()}]
    if surplus:
        raise CheckpointError(folder, f"is surplus: an RWKV-{version} has no such tensor", tensor=surplus[0])
    tensors = {}
    for name, row in rows.items():
        if row.name not in there:
            raise CheckpointError(folder, f"is missing; it holds {name}", tensor=row.name)
        tensor = there[row.name]
        if row.flat:
            tensor = tensor.reshape(1, 1, -1)
        tensors[name] = np.ascontiguousarray(tensor.T) if row.transposed else tensor
    return tensors


def _split_fused_mixing(there: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """Older fla keeps the six ``x_*`` of a layer in one ``x_x`` [6, D], in the order r, w, k, v, a, g."""
    tensors = {}
    for name, tensor in there.items():
        if not name.endswith(".attn.x_x"):
            tensors[name] = tensor
            continue
        if len(tensor.shape) < 2 or tensor.shape[0] != 6:
            raise CheckpointError(folder, f"has shape {tensor.shape}, expected (6, D)", tensor=name)
        prefix = name.removesuffix("x")
        tensors |= {f"{prefix}{x}": row.reshape(1, 1, -1) for x, row in zip("rwkvag", tensor, strict=True)}
    return tensors


def read_tokenizer(folder: Path, metadata: dict[str, str]) -> dict[str, Any] | None:
    """The specification of a folder's tokenizer: of the weights' metadata, or a file's; None where none is.

    Raises:
        CheckpointError: it cannot be read.
    """
    if tokenizer_spec.METADATA_KEY in metadata:
        own = tokenizer_spec.decode(metadata[tokenizer_spec.METADATA_KEY], folder / "model.safetensors")
        if own is not None:
            return own
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return {"kind": "json", "json": path.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(path, f"cannot be read: {error}") from error
    return {"kind": "world"} if (folder / _WORLD_VOCABULARY).is_file() else None
