"""Checkpoints: models in files, as numpy arrays under official names.

Read: ``.pth`` (without torch, and without running code of the file), ``.safetensors``, ``.gguf``, rwkv.cpp's
``.bin``, and Hugging Face folders (transformers' RWKV-4, flash-linear-attention's RWKV-7). Written: ``.pth``,
``.safetensors``, ``.gguf`` and Hugging Face folders. The configuration is read off names and shapes, never
asked for.
"""

from __future__ import annotations

from rookery.checkpoints.checkpoint import DTYPES, Checkpoint, assemble, cast, check_finite, dequantize
from rookery.checkpoints.huggingface import save_huggingface
from rookery.checkpoints.loading import load
from rookery.checkpoints.quantized import BLOCK, BLOCK_BYTES, Quantized, Weight, dense, dtype_name
from rookery.checkpoints.saving import save
from rookery.checkpoints.schema import config_from_tensors, expected_shapes, optional_shapes

__all__ = [
    "BLOCK",
    "BLOCK_BYTES",
    "DTYPES",
    "Checkpoint",
    "Quantized",
    "Weight",
    "assemble",
    "cast",
    "check_finite",
    "config_from_tensors",
    "dense",
    "dequantize",
    "dtype_name",
    "expected_shapes",
    "load",
    "optional_shapes",
    "save",
    "save_huggingface",
]
