"""What tensors a model of each version has, and the configuration read back from their names and shapes.

Names, orientation and shapes are those of the official ``.pth`` files (BlinkDL/RWKV-LM); the weight of a
linear map is [out, in]. Shapes are rows of tables in the letters of the legend (``rookery.config``), with K
for the head size and these ranks: E mix, G decay, I in-context learning rate, R value residual, Q gate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from rookery.checkpoints.quantized import Quantized, Weight
from rookery.config import ModelConfig, Version, sized
from rookery.errors import CheckpointError, ConfigError

__all__ = ["config_from_tensors", "expected_shapes", "fit", "optional_shapes", "refuse_other_kinds"]

Shape = tuple[int, ...]
Row = tuple[str | int, ...]


def _vectors(*names: str, width: str = "D") -> dict[str, Row]:
    """Per-channel vectors, which official files keep as [1, 1, width]."""
    return dict.fromkeys(names, (1, 1, width))


def _norm(name: str, width: str = "D") -> dict[str, Row]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _low_rank(letter: str, rank: str) -> dict[str, Row]:
    """RWKV-7: ``x -> x0 + f(x x1) x2``."""
    return {
        f"att.{letter}1": ("D", rank),
        f"att.{letter}2": (rank, "A"),
        f"att.{letter}0": (1, 1, "A"),
    }


_PROJECTIONS: dict[str, Row] = {
    "att.receptance.weight": ("A", "D"),
    "att.key.weight": ("A", "D"),
    "att.value.weight": ("A", "D"),
    "att.output.weight": ("D", "A"),
}
_GATE: dict[str, Row] = {"att.gate.weight": ("A", "D")}
_CHANNEL_MATRICES: dict[str, Row] = {
    "ffn.key.weight": ("F", "D"),
    "ffn.receptance.weight": ("D", "D"),
    "ffn.value.weight": ("D", "F"),
}
_CHANNEL_MIXING_4 = _vectors("ffn.time_mix_k", "ffn.time_mix_r") | _CHANNEL_MATRICES

# The tensors of one block besides its layer norms, by version, in official order.
_BLOCKS: dict[Version, dict[str, Row]] = {
    "4": {
        "att.time_decay": ("A",),
        "att.time_first": ("A",),
        **_vectors("att.time_mix_k", "att.time_mix_v", "att.time_mix_r"),
        **_PROJECTIONS,
        **_CHANNEL_MIXING_4,
    },
    "5.0": {
        **_vectors("att.time_mix_k", "att.time_mix_v", "att.time_mix_r"),
        "att.time_decay": ("H",),
        "att.time_first": ("H",),
        **_PROJECTIONS,
        **_norm("att.ln_x", "A"),
        **_CHANNEL_MIXING_4,
    },
    "5.1": {
        **_vectors("att.time_mix_k", "att.time_mix_v", "att.time_mix_r", "att.time_mix_g"),
        "att.time_decay": ("H",),
        "att.time_first": ("H",),
        **_PROJECTIONS,
        **_GATE,
        **_norm("att.ln_x", "A"),
        **_CHANNEL_MIXING_4,
    },
    "5.2": {
        **_vectors("att.time_mix_k", "att.time_mix_v", "att.time_mix_r", "att.time_mix_g"),
        "att.time_decay": ("H", "K"),
        "att.time_faaaa": ("H", "K"),
        **_PROJECTIONS,
        **_GATE,
        **_norm("att.ln_x", "A"),
        **_CHANNEL_MIXING_4,
    },
    "6": {
        **_vectors(*(f"att.time_maa_{letter}" for letter in "xwkvrg")),
        "att.time_maa_w1": ("D", "5E"),
        "att.time_maa_w2": (5, "E", "D"),
        **_vectors("att.time_decay", width="A"),
        "att.time_decay_w1": ("D", "G"),
        "att.time_decay_w2": ("G", "A"),
        "att.time_faaaa": ("H", "K"),
        **_PROJECTIONS,
        **_GATE,
        **_norm("att.ln_x", "A"),
        **_vectors("ffn.time_maa_k", "ffn.time_maa_r"),
        **_CHANNEL_MATRICES,
    },
    "7": {
        **_vectors(*(f"att.x_{letter}" for letter in "rwkvag")),
        **_low_rank("w", "G"),
        **_low_rank("a", "I"),
        **_low_rank("v", "R"),
        "att.g1": ("D", "Q"),
        "att.g2": ("Q", "A"),
        **_vectors("att.k_k", "att.k_a", width="A"),
        "att.r_k": ("H", "K"),
        **_PROJECTIONS,
        **_norm("att.ln_x", "A"),
        **_vectors("ffn.x_k"),
        "ffn.key.weight": ("F", "D"),
        "ffn.value.weight": ("D", "F"),
    },
}
_BEFORE: dict[str, Row] = {"emb.weight": ("N", "D")}
_AFTER: dict[str, Row] = {**_norm("ln_out"), "head.weight": ("N", "D")}

# Layer 0 of RWKV-7 has no earlier value to mix in: files may hold these, and nothing reads them.
_UNUSED_7 = ("blocks.0.att.v1", "blocks.0.att.v2", "blocks.0.att.v0")


def _all_shapes(config: ModelConfig) -> dict[str, Shape]:
    size = {
        "N": config.vocab_size,
        "D": config.width,
        "A": config.attention_width,
        "F": config.ffn_width,
        "H": config.num_heads,
        "K": config.head_size,
        "E": config.mix_rank,
        "5E": 5 * config.mix_rank,
        "G": config.decay_rank,
        "I": config.iclr_rank,
        "R": config.value_rank,
        "Q": config.gate_rank,
    }
    rows = dict(_BEFORE)
    for layer in range(config.num_layers):
        norms = _norm("ln1") | _norm("ln2") | (_norm("ln0") if layer == 0 else {})
        rows |= {f"blocks.{layer}.{name}": row for name, row in (norms | _BLOCKS[config.version]).items()}
    rows |= _AFTER
    return {name: tuple(size[n] if isinstance(n, str) else n for n in row) for name, row in rows.items()}


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shape of every tensor that a model must have, under official names, in official order.

    Layer 0 of RWKV-7 is listed without its unused ``att.v0 v1 v2``: see ``optional_shapes``.
    """
    shapes = _all_shapes(config)
    for name in optional_shapes(config):
        del shapes[name]
    return shapes


def optional_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Tensors that files may hold and nothing uses: ``att.v0 v1 v2`` of RWKV-7's layer 0."""
    if config.version != "7":
        return {}
    R, D, A = config.value_rank, config.width, config.attention_width
    return dict(zip(_UNUSED_7, ((D, R), (R, A), (1, 1, A)), strict=True))


def config_from_tensors(tensors: Mapping[str, Weight | Shape], path: str | Path | None = None) -> ModelConfig:
    """Read a model's configuration off the names and shapes of its tensors.

    Nothing else is needed and nothing else is looked at. The ranks of a one-layer RWKV-7 without the unused
    tensors of layer 0 do not say its ``value_rank``, which is then the recipe's.

    Args:
        tensors: arrays, or only their shapes, under official names.
        path: the file they are of, for the messages.

    Raises:
        CheckpointError: this is no RWKV checkpoint, a kind that is not read (the message says which), or
            a tensor that the configuration is read from is missing or has a strange shape.
    """
    shapes = {name: _shape(value) for name, value in tensors.items()}
    refuse_other_kinds(shapes, path)
    return _Reader(shapes, path).config()


def fit(
    tensors: Mapping[str, Weight], config: ModelConfig, path: str | Path | None = None
) -> dict[str, Weight]:
    """The tensors of a model in official order and shape, after a check that they are exactly its tensors.

    A tensor whose shape differs from the official one only by axes of length 1 gets the official shape:
    files in circulation have ``[D]`` for ``[1, 1, D]``, and ``[H, 1]`` for ``[H]``.

    Raises:
        CheckpointError: a tensor is missing, surplus, or its shape does not fit.
    """
    expected = expected_shapes(config)
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(
                path, f"is missing; an RWKV-{config.version} model has it, with shape {shape}", tensor=name
            )
    allowed = expected | _unused_shapes(tensors, config)
    surplus = [name for name in tensors if name not in allowed]
    if surplus:
        others = f" ({len(surplus) - 1} others are surplus as well)" if len(surplus) > 1 else ""
        raise CheckpointError(
            path, f"is surplus: an RWKV-{config.version} model has no such tensor{others}", tensor=surplus[0]
        )
    fitted = {}
    for name in _all_shapes(config):
        if name not in allowed:
            continue
        tensor, shape = tensors[name], allowed[name]
        if tuple(tensor.shape) != shape:
            if isinstance(tensor, Quantized) or _without_ones(tensor.shape) != _without_ones(shape):
                raise CheckpointError(
                    path, f"has shape {tuple(tensor.shape)}, expected {shape} in this model", tensor=name
                )
            tensor = tensor.reshape(shape)
        fitted[name] = tensor
    return fitted


def _unused_shapes(tensors: Mapping[str, Weight], config: ModelConfig) -> dict[str, Shape]:
    """The optional tensors that are there; their rank is their own, since nothing ties it to other layers."""
    optional = optional_shapes(config)
    first, second, _ = _UNUSED_7
    if first in tensors and len(tensors[first].shape) == 2:
        optional[first] = (config.width, tensors[first].shape[1])
        optional[second] = (tensors[first].shape[1], config.attention_width)
    return {name: shape for name, shape in optional.items() if name in tensors}


def _shape(value: Weight | Shape) -> Shape:
    return tuple(value if isinstance(value, tuple | list) else value.shape)


def _without_ones(shape: Iterable[int]) -> Shape:
    return tuple(n for n in shape if n != 1)


# Kinds of files that look like an RWKV model and are none that this package reads, told by a name in them.
_OTHER_KINDS: tuple[tuple[Callable[[set[str]], bool], str], ...] = (
    (
        lambda names: bool(names & {"_strategy", "_version", "_rescale_layer"}),
        "was converted by the `rwkv` package for one strategy (ln0 folded in, matrices transposed), which "
        "cannot be undone exactly; use the original .pth",
    ),
    (
        lambda names: any(".qkv." in name or name.startswith("qkv.") for name in names),
        "is an RWKV-7b model (DeepEmbed and DeepEmbed attention), which is not supported; RWKV-7 is",
    ),
    (
        lambda names: any(".s_emb" in name for name in names),
        "is an RWKV-7a model (DeepEmbed), which is not supported; RWKV-7 is",
    ),
    (
        lambda names: any(re.search(r"\.lora_?[AB]\b|lora_[AB]\.", name) for name in names),
        "holds LoRA adapters, not a whole model; merge them into their base model first",
    ),
    (
        lambda names: "emb.weight" not in names and any(name.endswith(".time_state") for name in names),
        "holds a tuned state, not a model",
    ),
    (
        lambda names: any(name.endswith(".time_state") for name in names),
        "holds a model together with a tuned state (att.time_state); save the model's tensors alone",
    ),
    (
        lambda names: bool(names & {"rwkv.embeddings.weight", "model.embeddings.weight"}),
        "holds Hugging Face names; load the folder that it lies in, with its config.json",
    ),
    (lambda names: not names, "holds no tensors"),
    (
        lambda names: "emb.weight" not in names,
        "is no RWKV checkpoint: there is no tensor 'emb.weight' in it",
    ),
)


def refuse_other_kinds(names: Iterable[str], path: str | Path | None) -> None:
    """Refuse a file whose names show that it is something else than a whole RWKV model in official form.

    Raises:
        CheckpointError: says what the file is, and what to use instead.
    """
    names = {str(name) for name in names}
    for matches, problem in _OTHER_KINDS:
        if matches(names):
            raise CheckpointError(path, problem)


class _Reader:
    """Reads the fields of a configuration off shapes."""

    def __init__(self, shapes: Mapping[str, Shape], path: str | Path | None):
        self.shapes = shapes
        self.path = path

    def config(self) -> ModelConfig:
        version = self.version()
        vocab_size, width = self.axes("emb.weight", 2)
        attention_width = self.axes("blocks.0.att.key.weight", 2)[0]
        fields: dict[str, Any] = {
            "version": version,
            "vocab_size": vocab_size,
            "width": width,
            "num_layers": self.num_layers(),
            "attention_width": attention_width,
            "ffn_width": self.axes("blocks.0.ffn.key.weight", 2)[0],
        }
        try:
            fields |= self.heads(version, attention_width) | self.ranks(version, width)
            return ModelConfig(**fields)
        except ConfigError as error:
            raise CheckpointError(
                self.path, f"the shapes of its tensors do not make a model: {error}"
            ) from error

    def version(self) -> Version:
        block = {name[len("blocks.0.") :] for name in self.shapes if name.startswith("blocks.0.")}
        if block & {"att.r_k", "att.k_k"}:
            return "7"
        if "att.time_maa_x" in block:
            return "6"
        if "att.ln_x.weight" not in block:
            return "4"
        decay = self.shapes.get("blocks.0.att.time_decay", ())
        if "att.time_faaaa" in block or (len(decay) > 1 and decay[1] > 1):
            return "5.2"
        return "5.1" if "att.gate.weight" in block else "5.0"

    def num_layers(self) -> int:
        layers = {int(match[1]) for name in self.shapes if (match := re.match(r"blocks\.(\d{1,6})\.", name))}
        missing = next((layer for layer in range(len(layers)) if layer not in layers), None)
        if not layers or missing is not None:
            missing = missing or 0
            raise CheckpointError(
                self.path, f"layer {missing} is missing", tensor=f"blocks.{missing}.ln1.weight"
            )
        return len(layers)

    def heads(self, version: Version, attention_width: int) -> dict[str, int]:
        if version == "4":
            return {}
        if version in ("5.0", "5.1"):
            name = "blocks.0.att.time_decay"
            heads = prod(self.axes(name))
            if heads == 0 or attention_width % heads:
                raise CheckpointError(
                    self.path,
                    f"has shape {self.shapes[name]}, expected [H] where the number of heads H divides the "
                    f"attention width {attention_width}",
                    tensor=name,
                )
            return {"head_size": attention_width // heads}
        name = "blocks.0.att.r_k" if version == "7" else "blocks.0.att.time_faaaa"
        return {"head_size": self.axes(name, 2)[1]}

    def ranks(self, version: Version, width: int) -> dict[str, int]:
        if version == "6":
            mixes = self.axes("blocks.0.att.time_maa_w1", 2)[1]
            return {"mix_rank": mixes // 5, "decay_rank": self.axes("blocks.0.att.time_decay_w1", 2)[1]}
        if version != "7":
            return {}
        ranks = {
            "decay_rank": self.axes("blocks.0.att.w1", 2)[1],
            "iclr_rank": self.axes("blocks.0.att.a1", 2)[1],
            "gate_rank": self.axes("blocks.0.att.g1", 2)[1],
        }
        if self.num_layers() > 1:
            return ranks | {"value_rank": self.axes("blocks.1.att.v1", 2)[1]}
        if "blocks.0.att.v1" in self.shapes:
            return ranks | {"value_rank": self.axes("blocks.0.att.v1", 2)[1]}
        recipe = sized("7", vocab_size=1, width=width, num_layers=1, head_size=width)
        return ranks | {"value_rank": recipe.value_rank}

    def axes(self, name: str, ndim: int | None = None) -> Shape:
        if name not in self.shapes:
            raise CheckpointError(self.path, "is missing", tensor=name)
        shape = self.shapes[name]
        if ndim is not None and len(shape) != ndim:
            raise CheckpointError(self.path, f"has shape {shape}, expected {ndim} axes", tensor=name)
        return shape
