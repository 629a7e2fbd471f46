"""Models in blocks of small integers: which matrices, in which blocks.

    type    matrices   embedding, low-rank matrices   vectors
    q8      q8_0       q8_0                           float32
    q4      q4_0       q8_0                           float32

What costs little keeps more: of an embedding one row is read at a time, low-rank matrices are a few percent
of a model, and vectors less. RWKV-6's ``time_maa_w2``, which has three axes, becomes float16; so does a
matrix whose inputs are not a multiple of 32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rookery.checkpoints import BLOCK, Checkpoint, Quantized, Weight, dense, dtype_name
from rookery.checkpoints.gguf_names import names
from rookery.errors import CheckpointError, ConfigError
from rookery.native import _engine

__all__ = ["TYPES", "Converted", "quantize"]

TYPES: dict[str, str] = {"q8": "q8_0", "q4": "q4_0"}
"""Type of a model -> blocks of its matrices."""

_KEPT_AT_8_BITS = re.compile(r"emb\.weight$|att\.([wavg][12]|time_maa_w1|time_decay_w[12])$")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What became of one tensor."""

    name: str
    size: int
    """Weights."""

    kind: str
    """"q8_0", "q4_0", "float16" or "float32"."""

    bytes: int
    """Of what it became."""

    error: float
    """Root of the mean squared error, relative to the root of the mean square of the weights."""


def quantize(
    checkpoint: Checkpoint,
    type: str,  # noqa: A002
    *,
    threads: int | None = None,
    report: Callable[[Converted], None] = lambda converted: None,
) -> Checkpoint:
    """The same model with its matrices in blocks.

    Args:
        checkpoint: of any version; matrices that are in blocks of another kind are made anew from what those
            stand for.
        type: ``"q8"`` or ``"q4"``.
        threads: default the physical cores.
        report: called with each tensor that is done.

    Raises:
        ConfigError: the type is unknown, or the number of threads.
        CheckpointError: a weight is not finite, or too large for a 16-bit scale.
    """
    if type not in TYPES:
        raise ConfigError(f"there is no type {type!r} of quantized models; there are {', '.join(TYPES)}")
    if threads is not None and not 1 <= threads <= _engine.MAX_THREADS:
        raise ConfigError(f"threads must be 1 to {_engine.MAX_THREADS}, not {threads}")
    count = threads or _engine.default_threads()
    config = checkpoint.config
    rows = names(config.version, config.num_layers)
    tensors: dict[str, Weight] = {}
    for name, weight in checkpoint.tensors.items():
        row = rows[name]
        error = 0.0
        if not row.is_matrix:
            tensors[name] = made = dense(weight).astype(np.float32, copy=False)
        else:
            kind = TYPES["q8" if _KEPT_AT_8_BITS.search(name) else type]
            made, error = _matrix(weight, kind, row.form == "transposed", count)
            tensors[name] = made
        if not math.isfinite(error):
            raise CheckpointError(
                checkpoint.path,
                f"has weights that are not finite, or too large for {dtype_name(made)}; "
                "`rookery inspect --check` says where",
                tensor=name,
            )
        report(Converted(name=name, size=weight.size, kind=dtype_name(made), bytes=made.nbytes, error=error))
    return replace(checkpoint, tensors=tensors)


def _matrix(weight: Weight, kind: str, transposed: bool, threads: int) -> tuple[Weight, float]:
    """The matrix in blocks, or as float16 where it has none; and the relative error."""
    if isinstance(weight, Quantized) and weight.kind == kind and weight.transposed == transposed:
        return weight, 0.0
    array = dense(weight)
    if array.ndim != 2 or array.shape[0 if transposed else 1] % BLOCK:
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        off = half.astype(np.float64) - array.astype(np.float64)
        return half, _relative(float(np.square(off).sum()), float(np.square(array.astype(np.float64)).sum()))
    source = np.ascontiguousarray(array.T if transposed else array)
    rows, columns = source.shape
    blocks, error, square = _engine.quantize(
        source.reshape(-1).view(np.uint8),
        source=source.dtype.name,
        rows=rows,
        columns=columns,
        type=kind,
        threads=threads,
    )
    return Quantized(kind, (*array.shape,), blocks, transposed), _relative(error, square)


def _relative(error: float, square: float) -> float:
    if not (math.isfinite(error) and math.isfinite(square)):
        return math.inf
    return math.sqrt(error / square) if square else 0.0
