"""One model of random weights, in the files that each side reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from rookery import checkpoints
from rookery.checkpoints import Checkpoint
from rookery.checkpoints.schema import expected_shapes, optional_shapes
from rookery.config import ModelConfig, sized
from rookery.native.quantize import quantize

__all__ = ["FULL", "TINY", "files", "random_checkpoint"]

KINDS = ("bf16", "f16", "q8", "q4", "pth")

RANKS = {"decay_rank": 64, "iclr_rank": 64, "value_rank": 32, "gate_rank": 128}

FULL = sized("7", vocab_size=65536, width=768, num_layers=12, ffn_width=3072, **RANKS)
"""191 M parameters, as RWKV-7 "World" 0.1B has them."""

TINY = sized("7", vocab_size=65536, width=64, num_layers=2, **dict.fromkeys(RANKS, 32))
"""For tests of the benchmark itself."""


def random_checkpoint(config: ModelConfig, seed: int = 0) -> Checkpoint:
    """Random weights of usual sizes, in bfloat16: every side can hold them as they are, or rounds the same.

    Half of channel mixing's rectified inputs are zero; in trained models most of them are.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, checkpoints.Weight] = {}
    for name, shape in (expected_shapes(config) | optional_shapes(config)).items():
        part = name.rsplit(".", 2)[-2 if name.endswith((".weight", ".bias")) else -1]
        tensors[name] = _values(part, name, shape, rng).astype(ml_dtypes.bfloat16)
    return checkpoints.assemble(tensors, tokenizer={"kind": "world"})


def _values(part: str, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if part.startswith("ln"):
        return np.full(shape, 1.0 if name.endswith(".weight") else 0.0, np.float32)
    if len(shape) == 2 and part != "r_k":
        inputs = shape[0] if part[-1] in "12" else shape[1]
        scale = 1.0 if part == "emb" else inputs**-0.5
        return rng.standard_normal(shape, np.float32) * np.float32(scale)
    low, high = _RANGES.get(part, (0.0, 1.0))
    return rng.uniform(low, high, shape).astype(np.float32)


# Vectors besides the token shift's, which are within 0 and 1.
_RANGES = {"w0": (-6.0, 0.0), "a0": (-0.5, 0.5), "v0": (-0.5, 0.5), "k_k": (0.7, 1.0), "r_k": (-0.1, 0.1)}


def files(
    folder: Path, config: ModelConfig, say: Callable[[str], None], kinds: Sequence[str] = KINDS
) -> dict[str, Path]:
    """Write the model in some types, unless it is there: type -> file.

    ``q8`` and ``q4`` are what `rookery quantize` writes; each is the one file that both sides read.
    """
    stem = f"random-L{config.num_layers}-D{config.width}"
    paths = {kind: folder / (f"{stem}.pth" if kind == "pth" else f"{stem}.{kind}.gguf") for kind in kinds}
    if all(path.exists() for path in paths.values()):
        return paths
    checkpoint = random_checkpoint(config)
    for kind, path in paths.items():
        say(f"writing {path.name}")
        checkpoints.save(_as(kind, checkpoint), path)
    return paths


def _as(kind: str, checkpoint: Checkpoint) -> Checkpoint:
    if kind == "f16":
        return checkpoints.cast(checkpoint, "float16")
    return quantize(checkpoint, kind) if kind in ("q8", "q4") else checkpoint
