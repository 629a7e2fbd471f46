"""A model on disk or in memory: its configuration, its weights under official names, its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rookery.checkpoints.quantized import Weight, dense
from rookery.checkpoints.schema import config_from_tensors, fit
from rookery.config import ModelConfig
from rookery.errors import CheckpointError

__all__ = ["DTYPES", "Checkpoint", "assemble", "cast", "check_finite", "checked_tensors", "dequantize"]

# The dtypes that weights may have, by name.
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A model's weights and what is needed to use them. Two are equal only if they are one object."""

    config: ModelConfig
    """The shape of the model, read off its tensors."""

    tensors: Mapping[str, Weight]
    """Every tensor under its official (BlinkDL) name, in official order, orientation and shape.

    Arrays of float32, float16 or ``ml_dtypes.bfloat16``, and ``Quantized`` matrices. Tensors of a loaded
    checkpoint are mostly views of the mapped file, and so read-only; copy one before writing into it or
    handing it to code that may.
    """

    tokenizer: dict[str, Any] | None = None
    """The specification of a tokenizer, as ``rookery.tokenizers.from_spec`` takes it; None if unknown."""

    path: Path | None = None
    """Where it was loaded from."""


def assemble(
    tensors: Mapping[str, Weight],
    *,
    tokenizer: dict[str, Any] | None = None,
    path: str | Path | None = None,
) -> Checkpoint:
    """A checkpoint from tensors under official names, checked to be one whole model.

    Raises:
        CheckpointError: a tensor is missing, surplus, of a shape that does not fit, or of a dtype that
            weights do not have.
    """
    _check_dtypes(tensors, path)
    config = config_from_tensors(tensors, path)
    fitted = fit(tensors, config, path)
    return Checkpoint(
        config=config, tensors=fitted, tokenizer=tokenizer, path=None if path is None else Path(path)
    )


def checked_tensors(checkpoint: Checkpoint, path: str | Path | None) -> dict[str, Weight]:
    """The tensors of a checkpoint that is to be written or run, checked to be those of its config.

    Raises:
        CheckpointError: they are not.
    """
    _check_dtypes(checkpoint.tensors, path)
    return fit(checkpoint.tensors, checkpoint.config, path)


def _check_dtypes(tensors: Mapping[str, Weight], path: str | Path | None) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            raise CheckpointError(
                path, f"has dtype {tensor.dtype}, but weights are {', '.join(DTYPES)}", tensor=name
            )


def check_finite(checkpoint: Checkpoint) -> None:
    """Read every weight and check that none is NaN or infinite.

    Raises:
        CheckpointError: names the first tensor with such a weight, how many it has, and where the first is.
    """
    for name, tensor in checkpoint.tensors.items():
        with np.errstate(invalid="ignore"):  # of signalling NaN
            finite = np.isfinite(dense(tensor))
        if not finite.all():
            where = tuple(int(i) for i in np.argwhere(~finite)[0])
            raise CheckpointError(
                checkpoint.path,
                f"{int((~finite).sum())} of {tensor.size} weights are not finite, the first at {where}; "
                "expected finite weights (did training diverge?)",
                tensor=name,
            )


def cast(checkpoint: Checkpoint, dtype: str) -> Checkpoint:
    """The same model with every weight rounded to ``dtype``, one of ``DTYPES``; blocks are dequantized.

    Raises:
        CheckpointError: the dtype is unknown, or a finite weight is beyond its range (float16 ends at 65504).
    """
    if dtype not in DTYPES:
        raise CheckpointError(None, f"dtype {dtype!r} is unknown; known are {', '.join(DTYPES)}")
    tensors = {}
    for name, weight in checkpoint.tensors.items():
        tensor = dense(weight)
        with np.errstate(over="ignore"):
            rounded = tensor.astype(DTYPES[dtype], copy=False)
        if rounded is not tensor and (np.isinf(rounded) & np.isfinite(tensor)).any():
            largest = float(np.abs(tensor.astype(np.float32)).max())
            raise CheckpointError(
                checkpoint.path,
                f"a weight of magnitude {largest:g} is beyond the range of {dtype}; try bfloat16",
                tensor=name,
            )
        tensors[name] = rounded
    return replace(checkpoint, tensors=tensors)


def dequantize(checkpoint: Checkpoint) -> Checkpoint:
    """The same model with every ``Quantized`` matrix as the float32 array that it stands for."""
    tensors = {name: dense(tensor) for name, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors)
