"""Hugging Face's names for the tensors of a model, as tables.

A row says how one official tensor is kept elsewhere: under which name, whether transposed, and whether
without axes of length 1.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Row", "names"]


@dataclass(frozen=True)
class Row:
    """Where an official tensor is found in another format."""

    name: str
    """Its name there."""

    transposed: bool = False
    """Whether a matrix is kept transposed."""

    flat: bool = False
    """Whether axes of length 1 are left out: [D] for [1, 1, D]."""


# transformers, RwkvForCausalLM (RWKV-4).
_OUTSIDE_4 = {
    "emb.weight": Row("rwkv.embeddings.weight"),
    "ln_out.weight": Row("rwkv.ln_out.weight"),
    "ln_out.bias": Row("rwkv.ln_out.bias"),
    "head.weight": Row("head.weight"),
}
_BLOCK_4 = {
    **{f"ln0.{part}": Row(f"pre_ln.{part}") for part in ("weight", "bias")},
    **{f"{norm}.{part}": Row(f"{norm}.{part}") for norm in ("ln1", "ln2") for part in ("weight", "bias")},
    "att.time_decay": Row("attention.time_decay"),
    "att.time_first": Row("attention.time_first"),
    "att.time_mix_k": Row("attention.time_mix_key"),
    "att.time_mix_v": Row("attention.time_mix_value"),
    "att.time_mix_r": Row("attention.time_mix_receptance"),
    **{
        f"att.{name}.weight": Row(f"attention.{name}.weight")
        for name in ("key", "value", "receptance", "output")
    },
    "ffn.time_mix_k": Row("feed_forward.time_mix_key"),
    "ffn.time_mix_r": Row("feed_forward.time_mix_receptance"),
    **{f"ffn.{name}.weight": Row(f"feed_forward.{name}.weight") for name in ("key", "value", "receptance")},
}

# flash-linear-attention, RWKV7ForCausalLM.
_OUTSIDE_7 = {
    "emb.weight": Row("model.embeddings.weight"),
    "ln_out.weight": Row("model.norm.weight"),
    "ln_out.bias": Row("model.norm.bias"),
    "head.weight": Row("lm_head.weight"),
}
_NORMS_7 = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm", "att.ln_x": "attn.g_norm"}
_PROJECTIONS_7 = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
_BLOCK_7 = {
    **{f"{a}.{part}": Row(f"{b}.{part}") for a, b in _NORMS_7.items() for part in ("weight", "bias")},
    **{f"att.x_{letter}": Row(f"attn.x_{letter}") for letter in "rwkvag"},
    **{f"att.{letter}1": Row(f"attn.{letter}_lora.lora.0.weight", transposed=True) for letter in "wavg"},
    **{f"att.{letter}2": Row(f"attn.{letter}_lora.lora.2.weight", transposed=True) for letter in "wavg"},
    **{f"att.{letter}0": Row(f"attn.{letter}_lora.lora.2.bias", flat=True) for letter in "wav"},
    "att.k_k": Row("attn.k_k", flat=True),
    "att.k_a": Row("attn.k_a", flat=True),
    "att.r_k": Row("attn.r_k"),
    **{f"att.{a}.weight": Row(f"attn.{b}.weight") for a, b in _PROJECTIONS_7.items()},
    "ffn.x_k": Row("ffn.x_k", flat=True),
    "ffn.key.weight": Row("ffn.key.weight"),
    "ffn.value.weight": Row("ffn.value.weight"),
}

# By version: the tensors outside of blocks, those of a block, and the name of block i.
_TABLES: dict[str, tuple[dict[str, Row], dict[str, Row], str]] = {
    "4": (_OUTSIDE_4, _BLOCK_4, "rwkv.blocks.{}."),
    "7": (_OUTSIDE_7, _BLOCK_7, "model.layers.{}."),
}


def names(version: str, num_layers: int) -> dict[str, Row]:
    """Official name -> row, for every tensor that a model of this many layers has there."""
    outside, block, prefix = _TABLES[version]
    rows = dict(outside)
    for layer in range(num_layers):
        for name, row in block.items():
            only_first = name.startswith("ln0.")
            not_first = version == "7" and name in ("att.v0", "att.v1", "att.v2")
            if (only_first and layer > 0) or (not_first and layer == 0):
                continue
            there = prefix.format(layer) + row.name
            rows[f"blocks.{layer}.{name}"] = Row(there, transposed=row.transposed, flat=row.flat)
    return rows
