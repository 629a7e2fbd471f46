"""Memory: what a process has, what a machine has, and what a point will need."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

from rookery.checkpoints import expected_shapes
from rookery.evaluate.bench.families import FAMILIES, rwkv_config
from rookery.evaluate.bench.point import Point
from rookery.state import state_bytes

__all__ = [
    "available_bytes",
    "needed_bytes",
    "parameters",
    "peak_bytes",
    "release_freed",
    "reset_peak",
    "resident_bytes",
]

_STATUS, _INFO, _REFS = Path("/proc/self/status"), Path("/proc/meminfo"), Path("/proc/self/clear_refs")

_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "q8": 1.125, "q4": 0.625}


def resident_bytes() -> int | None:
    """Resident memory of this process; None where the kernel does not say."""
    return _field(_STATUS, "VmRSS")


def peak_bytes() -> int | None:
    """The most it has been since the start, or since ``reset_peak``."""
    return _field(_STATUS, "VmHWM")


def reset_peak() -> bool:
    """Let the kernel count the peak from now on; False where it does not."""
    try:
        _REFS.write_text("5")
    except OSError:
        return False
    return True


def release_freed() -> None:
    """Give memory that was freed back to the kernel, where the C library keeps it for later (glibc does)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return


def available_bytes() -> int | None:
    """What new processes can have without swapping; None where the kernel does not say."""
    return _field(_INFO, "MemAvailable")


def parameters(point: Point) -> int:
    """Of a published size; those of transformers without vectors, which are less than a hundredth."""
    family = FAMILIES[point.family]
    if family.version is not None:
        return sum(
            math.prod(shape) for shape in expected_shapes(rwkv_config(point.family, point.size)).values()
        )
    layers, width, _, vocabulary = _shape(point)
    # NeoX has a head of its own, the others use the embedding; OPT has positions.
    embeddings = vocabulary * (2 if family.model_type == "gpt_neox" else 1)
    embeddings += point.context + point.tokens if family.model_type == "opt" else 0
    return embeddings * width + 12 * layers * width**2


def needed_bytes(point: Point) -> int | None:
    """About how much memory a point takes at its peak; None for a file, of which nothing is known yet."""
    if point.family not in FAMILIES:
        return None
    size = _BYTES[point.dtype]
    weights = parameters(point) * size
    family = FAMILIES[point.family]
    if family.version is not None:
        # Random weights lie beside what is made of them, which on a GPU is elsewhere.
        made = parameters(point) * min(size if size > 2 else 2.0, 4.0)
        return int(made + weights) + state_bytes(rwkv_config(point.family, point.size))
    layers, width, heads, vocabulary = _shape(point)
    length = point.context + point.tokens
    cache = 2 * layers * length * width * size
    activations = point.context * width * 24 * size + 4 * vocabulary
    # BLOOM's attention holds scores of every pair, more than once.
    scores = 3 * heads * point.context**2 * size if family.model_type == "bloom" else 0
    return int(weights + cache + activations + scores)


def _shape(point: Point) -> tuple[int, int, int, int]:
    """Layers, width, heads and vocabulary of a model of transformers."""
    sizes = FAMILIES[point.family].sizes[point.size]
    layers = sizes.get("num_hidden_layers", sizes.get("n_layer"))
    heads = sizes.get("num_attention_heads", sizes.get("n_head"))
    assert layers is not None
    assert heads is not None
    return layers, sizes["hidden_size"], heads, sizes["vocab_size"]


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
