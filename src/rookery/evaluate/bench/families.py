"""Families of models by their published sizes; and the points that a command asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rookery import checkpoints
from rookery.config import PRESETS, ModelConfig, Version, preset
from rookery.errors import ConfigError
from rookery.evaluate.bench.point import Point
from rookery.generate.backend import DTYPES

__all__ = ["FAMILIES", "Family", "points_of_families", "points_of_model", "rwkv_config"]

_NATIVE_ONLY = ("q8", "q4")

# Of a file's largest matrix; the native engine takes float16 as bfloat16.
_TYPE_OF_FILE = {
    "float32": "float32",
    "float16": "bfloat16",
    "bfloat16": "bfloat16",
    "q8_0": "q8",
    "q4_0": "q4",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family."""

    title: str
    """For people."""

    backends: tuple[str, ...]
    """What can run it."""

    default: str
    """The size that is measured where none is asked for."""

    version: Version | None = None
    """Of RWKV; None for models of transformers."""

    model_type: str | None = None
    """Of transformers; None for RWKV."""

    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Size -> fields of its configuration in transformers."""

    def size(self, name: str) -> str | None:
        """The family's own spelling of a size, or None where it has none of the name."""
        known = PRESETS[self.version.split(".")[0]] if self.version is not None else self.sizes
        return next((each for each in known if each.lower() == name.lower()), None)

    @property
    def names(self) -> list[str]:
        """All sizes."""
        return list(PRESETS[self.version.split(".")[0]] if self.version is not None else self.sizes)


def _rwkv(version: Version, default: str) -> Family:
    return Family(title=f"RWKV-{version}", backends=("native", "torch"), default=default, version=version)


def _neox(layers: int, width: int, heads: int, vocabulary: int = 50304) -> dict[str, Any]:
    """Pythia (arXiv 2304.01373, table 1): rotary on a quarter of each head."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": vocabulary,
    }


def _opt(layers: int, width: int, heads: int, **changes: Any) -> dict[str, Any]:
    """OPT (arXiv 2205.01068, table 1)."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "ffn_dim": 4 * width,
        "word_embed_proj_dim": width,
        "vocab_size": 50272,
    } | changes


def _bloom(layers: int, width: int, heads: int) -> dict[str, Any]:
    """BLOOM (arXiv 2211.05100, table 3)."""
    return {"n_layer": layers, "hidden_size": width, "n_head": heads, "vocab_size": 250880}


FAMILIES: dict[str, Family] = {
    "rwkv": _rwkv("7", "0.1B"),
    "rwkv6": _rwkv("6", "0.1B"),
    "rwkv5": _rwkv("5.2", "0.1B"),
    "rwkv4": _rwkv("4", "0.1B"),
    "neox": Family(
        title="Pythia",
        backends=("transformers",),
        default="160m",
        model_type="gpt_neox",
        sizes={
            "14m": _neox(6, 128, 4),
            "31m": _neox(6, 256, 8),
            "70m": _neox(6, 512, 8),
            "160m": _neox(12, 768, 12),
            "410m": _neox(24, 1024, 16),
            "1b": _neox(16, 2048, 8),
            "1.4b": _neox(24, 2048, 16),
            "2.8b": _neox(32, 2560, 32),
            "6.9b": _neox(32, 4096, 32, 50432),
            "12b": _neox(36, 5120, 40, 50688),
        },
    ),
    "opt": Family(
        title="OPT",
        backends=("transformers",),
        default="125m",
        model_type="opt",
        sizes={
            "125m": _opt(12, 768, 12),
            "350m": _opt(24, 1024, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
            "1.3b": _opt(24, 2048, 32),
            "2.7b": _opt(32, 2560, 32),
            "6.7b": _opt(32, 4096, 32),
            "13b": _opt(40, 5120, 40),
        },
    ),
    "bloom": Family(
        title="BLOOM",
        backends=("transformers",),
        default="560m",
        model_type="bloom",
        sizes={
            "560m": _bloom(24, 1024, 16),
            "1b1": _bloom(24, 1536, 16),
            "1b7": _bloom(24, 2048, 16),
            "3b": _bloom(30, 2560, 32),
            "7b1": _bloom(30, 4096, 32),
        },
    ),
}
"""Name -> family. RWKV runs in this package's backends, the others in transformers."""


def rwkv_config(family: str, size: str) -> ModelConfig:
    """The configuration of a published RWKV."""
    version = FAMILIES[family].version
    assert version is not None
    return preset(version, size)


def points_of_families(
    families: Sequence[str],
    sizes: Sequence[str] = (),
    *,
    contexts: Sequence[int],
    backends: Sequence[str] = (),
    **options: Any,
) -> list[Point]:
    """The points of some families.

    Args:
        families: names of ``FAMILIES``.
        sizes: each is measured in every family that has it; by default each family's own default.
        contexts: lengths of prompts.
        backends: only these; by default all that can run a family.
        options: devices, dtypes, tokens, threads, rounds: see ``points_of_model``.

    Raises:
        ConfigError: a family is unknown, none of them has a size, or an option is out of range.
    """
    for name in families:
        if name not in FAMILIES:
            raise ConfigError(f"there is no family {name!r}; there are {', '.join(FAMILIES)}")
    chosen = [(name, own) for size in sizes for name in families if (own := FAMILIES[name].size(size))]
    for size in sizes:
        if not any(FAMILIES[name].size(size) for name in families):
            known = "; ".join(f"{name}: {', '.join(FAMILIES[name].names)}" for name in families)
            raise ConfigError(f"no size {size!r} in the chosen families; there are {known}")
    if not sizes:
        chosen = [(name, FAMILIES[name].default) for name in families]
    models = [
        (name, size, backend)
        for name, size in chosen
        for backend in FAMILIES[name].backends
        if not backends or backend in backends
    ]
    return _points(models, contexts=contexts, **options)


def points_of_model(
    path: str,
    *,
    contexts: Sequence[int],
    backends: Sequence[str] = (),
    devices: Sequence[str] = ("cpu",),
    dtypes: Sequence[str] = (),
    tokens: int = 32,
    threads: int = 1,
    rounds: int = 3,
) -> list[Point]:
    """The points of a model's file.

    Args:
        path: the model.
        contexts: lengths of prompts.
        backends: "native", "torch"; by default both.
        devices: "cpu", "cuda".
        dtypes: of the weights; by default the file's. "q8" and "q4" are measured in the native backend alone.
        tokens: to generate after each prompt.
        threads: of the CPU.
        rounds: measurements of each; the median counts.

    Raises:
        ConfigError: an option is unknown or out of range, or nothing is left to be measured.
        CheckpointError: the file cannot be read.
    """
    checkpoint = checkpoints.load(path)
    if not dtypes:
        largest = max(checkpoint.tensors.values(), key=lambda tensor: tensor.size)
        dtypes = (_TYPE_OF_FILE[checkpoints.dtype_name(largest)],)
    # As it is found from anywhere: a worker may have another current folder than the next command.
    models = [("file", str(Path(path).resolve()), each) for each in backends or ("native", "torch")]
    return _points(
        models,
        contexts=contexts,
        devices=devices,
        dtypes=dtypes,
        tokens=tokens,
        threads=threads,
        rounds=rounds,
    )


def _points(
    models: Sequence[tuple[str, str, str]],
    *,
    contexts: Sequence[int],
    devices: Sequence[str] = ("cpu",),
    dtypes: Sequence[str] = ("float32",),
    tokens: int = 32,
    threads: int = 1,
    rounds: int = 3,
) -> list[Point]:
    known = {"native", "torch", "transformers"}
    for backend in {backend for _, _, backend in models} - known:
        raise ConfigError(f"there is no backend {backend!r}; there are {', '.join(sorted(known))}")
    for device in set(devices) - {"cpu", "cuda"}:
        raise ConfigError(f"there is no device {device!r} here; there are cpu, cuda")
    for dtype in set(dtypes) - set(DTYPES.values()):
        raise ConfigError(f"there is no number type {dtype!r}; there are {', '.join(set(DTYPES.values()))}")
    counts = [("tokens", tokens), ("threads", threads), ("rounds", rounds)]
    for name, value in [*counts, *(("context", context) for context in contexts)]:
        if value < 1:
            raise ConfigError(f"{name} must be 1 or more, not {value}")
    points = [
        Point(
            family=family,
            size=size,
            backend=backend,
            device=device,
            dtype=dtype,
            context=context,
            tokens=tokens,
            threads=threads,
            round=number,
        )
        # Rounds outermost: a machine that drifts hits all alike. Short contexts first: what takes too long
        # there is not tried with longer ones.
        for number in range(rounds)
        for context in sorted(set(contexts))
        for family, size, backend in dict.fromkeys(models)
        for device in devices
        for dtype in dtypes
        if _fits(backend, device, dtype)
    ]
    if not points:
        raise ConfigError(
            "nothing is left to measure: none of the models runs in such a backend, device and number type"
        )
    return points


def _fits(backend: str, device: str, dtype: str) -> bool:
    if backend == "native":
        return device == "cpu" and dtype != "float16"
    return dtype not in _NATIVE_ONLY
