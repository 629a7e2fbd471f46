"""GPT-NeoX models, Pythia among them, from Hugging Face folders: softmax attention with their options.

Their blocks differ from the other models' here: no norm before the first block, both mixings read the same
input, biases everywhere, a quarter of each head is rotary, and the channel mixing is a GELU network without
token shift. All of it is in ``RivalConfig``, so that what is loaded is a ``Rival`` like every other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rookery.checkpoints.huggingface import read_json, read_weights
from rookery.errors import CheckpointError, ConfigError
from rookery.models.convert import fill
from rookery.rivals.config import RivalConfig
from rookery.rivals.model import Rival

__all__ = ["MODEL_TYPE", "config_of", "load_gpt_neox"]

MODEL_TYPE = "gpt_neox"

_OUTSIDE = {
    "emb.weight": "gpt_neox.embed_in.weight",
    "ln_out.weight": "gpt_neox.final_layer_norm.weight",
    "ln_out.bias": "gpt_neox.final_layer_norm.bias",
    "head.weight": "embed_out.weight",
}
_BLOCK = {
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "att.output": "attention.dense",
    "ffn.key": "mlp.dense_h_to_4h",
    "ffn.value": "mlp.dense_4h_to_h",
}
_FUSED = "attention.query_key_value"

# What older files keep of masks and rotary frequencies, which follow from the configuration.
_BUFFERS = (".attention.bias", ".attention.masked_bias", ".attention.rotary_emb.inv_freq")


def load_gpt_neox(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Rival:
    """The model of a Hugging Face folder whose ``model_type`` is "gpt_neox".

    Args:
        folder: with ``config.json`` and ``model.safetensors`` or ``pytorch_model.bin``, whole or in shards.
        device: where the model is to be.
        dtype: of all parameters; by default the narrowest that holds every tensor exactly.

    Raises:
        CheckpointError: the model is of another type or has options that are not supported, weights are
            missing or do not fit, or a file is broken.
    """
    folder = Path(folder)
    settings = read_json(folder / "config.json")
    config = config_of(settings, folder / "config.json")
    there, _ = read_weights(folder, ignore=lambda name: name.endswith(_BUFFERS))
    if settings.get("tie_word_embeddings") is True and _OUTSIDE["emb.weight"] in there:
        there.setdefault(_OUTSIDE["head.weight"], there[_OUTSIDE["emb.weight"]])
    with torch.device("meta"):
        model = Rival(config)
    arrays = _renamed(there, config, folder)
    return fill(model, arrays, path=folder, title="GPT-NeoX", device=device, dtype=dtype)


def config_of(settings: Mapping[str, Any], path: Path) -> RivalConfig:
    """The configuration that a ``config.json`` describes.

    Args:
        settings: its values.
        path: the file, for messages.

    Raises:
        CheckpointError: it is of another type of model, or of an option that is not supported.
    """
    if settings.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            path, f"its model_type is {settings.get('model_type')!r}, expected {MODEL_TYPE!r}"
        )
    rotary = settings.get("rope_parameters") or {}
    if not isinstance(rotary, dict):
        raise CheckpointError(path, f"rope_parameters is {rotary!r}, expected an object")
    supported: dict[str, tuple[Any, Any]] = {
        "hidden_act": (settings.get("hidden_act", "gelu"), "gelu"),
        "rope_scaling": (settings.get("rope_scaling"), None),
        "rope_type": (rotary.get("rope_type", "default"), "default"),
    }
    for option, (value, wanted) in supported.items():
        if value != wanted:
            raise CheckpointError(path, f"{option} is {value!r}; only {wanted!r} is supported")
    sizes = {}
    for option in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    ):
        value = settings.get(option)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(path, f"{option} is {value!r}, expected a positive integer")
        sizes[option] = value
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if width % heads:
        raise CheckpointError(path, f"hidden_size {width} is not a multiple of num_attention_heads {heads}")
    fraction = rotary.get("partial_rotary_factor", settings.get("rotary_pct", 0.25))
    base = rotary.get("rope_theta", settings.get("rotary_emb_base", 10000))
    try:
        return RivalConfig(
            mixer="attention",
            vocab_size=sizes["vocab_size"],
            width=width,
            num_layers=sizes["num_hidden_layers"],
            ffn_width=sizes["intermediate_size"],
            head_size=width // heads,
            rotary_size=int(width // heads * fraction),
            rotary_base=float(base),
            attention_bias=settings.get("attention_bias", True) is True,
            channel_mixing="gelu",
            parallel=settings.get("use_parallel_residual", True) is True,
            embedding_norm=False,
            norm_epsilon=float(settings.get("layer_norm_eps", 1e-5)),
        )
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(path, f"is no configuration of a GPT-NeoX model: {error}") from error


def _renamed(there: dict[str, np.ndarray], config: RivalConfig, folder: Path) -> dict[str, np.ndarray]:
    """Arrays under the names of ``Rival``; what is not GPT-NeoX's keeps its name, and is refused later."""
    # transformers since 5 calls the head so in memory.
    names = {theirs: ours for ours, theirs in _OUTSIDE.items()} | {"lm_head.weight": "head.weight"}
    arrays = {}
    for layer in range(config.num_layers):
        for ours, theirs in _BLOCK.items():
            for part in ("weight", "bias"):
                names[f"gpt_neox.layers.{layer}.{theirs}.{part}"] = f"blocks.{layer}.{ours}.{part}"
        for part in ("weight", "bias"):
            fused = f"gpt_neox.layers.{layer}.{_FUSED}.{part}"
            if fused in there:
                split = _split(there[fused], config, folder, fused)
                arrays |= {f"blocks.{layer}.att.{name}.{part}": array for name, array in split.items()}
    fused_names = tuple(f"{_FUSED}.{part}" for part in ("weight", "bias"))
    rest = {name: array for name, array in there.items() if not name.endswith(fused_names)}
    return arrays | {names.get(name, name): array for name, array in rest.items()}


def _split(array: np.ndarray, config: RivalConfig, folder: Path, name: str) -> dict[str, np.ndarray]:
    """Query, key and value of each head lie together: [H, 3, K] rows."""
    rows = 3 * config.width
    if array.shape[0] != rows:
        raise CheckpointError(folder, f"has shape {array.shape}, expected {rows} rows", tensor=name)
    heads = array.reshape(config.num_heads, 3, config.head_size, *array.shape[1:])
    return {
        each: np.ascontiguousarray(heads[:, i]).reshape(config.width, *array.shape[1:])
        for i, each in enumerate(("query", "key", "value"))
    }
