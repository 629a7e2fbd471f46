"""A model whose matrices stay in blocks of 8 or 4 bits: for running, not for training.

Which matrices those are is decided where blocks are made (``rookery.native.quantize``) or by the file; here
each ``Quantized`` tensor of a checkpoint takes the place of what the model has under its name.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from rookery.checkpoints import Checkpoint, Quantized, Weight
from rookery.checkpoints.gguf_names import names
from rookery.models.convert import fill_from
from rookery.models.model import RWKV
from rookery.ops.quantized import dequantize, quantized_linear, split_blocks

__all__ = ["QuantizedEmbedding", "QuantizedLinear", "quantized_from_checkpoint"]


class _InBlocks(nn.Module):
    """A matrix in blocks. Its tensors are no part of ``state_dict``, which has official names alone."""

    numbers: Tensor
    scales: Tensor

    def __init__(self, matrix: Quantized, device: torch.device | str = "cpu"):
        super().__init__()
        numbers, scales = split_blocks(matrix)
        self.register_buffer("numbers", numbers.to(device), persistent=False)
        self.register_buffer("scales", scales.to(device), persistent=False)

    def extra_repr(self) -> str:
        """The kind of blocks, and the sizes."""
        kind = "q8_0" if self.numbers.dtype == torch.int8 else "q4_0"
        return f"{kind}, rows={self.scales.shape[0]}, columns={self.scales.shape[1] * 32}"


class QuantizedLinear(_InBlocks):
    """In place of ``nn.Linear``, and of the parameters of low-rank matrices: ``x W^T``, in the dtype of x."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return quantized_linear(x, self.numbers, self.scales)


class QuantizedEmbedding(_InBlocks):
    """In place of ``nn.Embedding``: rows are made whole as they are read."""

    def __init__(self, matrix: Quantized, device: torch.device | str = "cpu", *, dtype: torch.dtype):
        super().__init__(matrix, device)
        self.dtype = dtype

    def forward(self, tokens: Tensor) -> Tensor:
        """[...] ids -> [..., D]."""
        return dequantize(self.numbers[tokens], self.scales[tokens], self.dtype)


def quantized_from_checkpoint(
    checkpoint: Checkpoint, *, device: torch.device | str = "cpu", dtype: torch.dtype
) -> RWKV:
    """The model of a checkpoint, with the matrices that it has in blocks left so.

    Blocks that run along a matrix's outputs, which nothing multiplies, are made whole.

    Args:
        checkpoint: of any version.
        device: where the model is to be.
        dtype: of all other parameters and of activations.

    Raises:
        CheckpointError: as ``from_checkpoint``.
    """
    forms = names(checkpoint.config.version, checkpoint.config.num_layers)
    with torch.device("meta"):
        model = RWKV(checkpoint.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    rest: dict[str, Weight] = {}
    for name, weight in checkpoint.tensors.items():
        if (
            isinstance(weight, Quantized)
            and weight.shape == shapes.get(name)
            and weight.transposed == (forms[name].form == "transposed")
        ):
            _put(model, name, weight, device, dtype)
        else:
            # What has another shape is refused there.
            rest[name] = weight
    return fill_from(model, replace(checkpoint, tensors=rest), device=device, dtype=dtype)


def _put(model: RWKV, name: str, matrix: Quantized, device: torch.device | str, dtype: torch.dtype) -> None:
    """The matrix in place of the module or parameter of this name."""
    made = (
        QuantizedEmbedding(matrix, device, dtype=dtype)
        if name == "emb.weight"
        else QuantizedLinear(matrix, device)
    )
    owner, _, leaf = name.removesuffix(".weight").rpartition(".")
    parent = model.get_submodule(owner)
    delattr(parent, leaf)
    setattr(parent, leaf, made)
