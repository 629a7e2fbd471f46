"""A model from a checkpoint, and its tensors for one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import TypeVar

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from rookery.checkpoints import Checkpoint, dense
from rookery.errors import CheckpointError
from rookery.models.model import RWKV

__all__ = ["fill", "fill_from", "from_checkpoint", "to_tensors"]

Model = TypeVar("Model", bound=nn.Module)

# Some files keep them in layer 0, which has nothing to mix its values with: nothing reads them.
_UNUSED = frozenset({"blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"})


def from_checkpoint(
    checkpoint: Checkpoint, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> RWKV:
    """The model of a checkpoint; its parameters are copies, and blocks are dequantized.

    Args:
        device: where the model is to be.
        dtype: of all parameters; by default the narrowest that holds every tensor of the checkpoint exactly.

    Raises:
        CheckpointError: a tensor is missing, is not one of the model's, or has another shape.
    """
    with torch.device("meta"):
        model = RWKV(checkpoint.config)
    return fill_from(model, checkpoint, device=device, dtype=dtype)


def fill_from(
    model: RWKV, checkpoint: Checkpoint, *, device: torch.device | str, dtype: torch.dtype | None
) -> RWKV:
    """``from_checkpoint`` for a model that was made already, on the device "meta"."""
    wanted = model.state_dict()
    arrays = {
        name: dense(array)
        for name, array in checkpoint.tensors.items()
        if name in wanted or name not in _UNUSED
    }
    title = f"RWKV-{checkpoint.config.version}"
    return fill(model, arrays, path=checkpoint.path, title=title, device=device, dtype=dtype)


def fill(
    model: Model,
    arrays: Mapping[str, np.ndarray],
    *,
    path: str | Path | None,
    title: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Model:
    """Give a model, made on the device "meta", copies of arrays as its parameters.

    Args:
        model: of any architecture.
        arrays: all its parameters, by their names in the model.
        path: where they are from, for messages.
        title: the model's name in messages.
        device: where the model is to be.
        dtype: of all parameters; by default the narrowest that holds every array exactly.

    Raises:
        CheckpointError: an array is missing, is not one of the model's, or has another shape.
    """
    wanted = model.state_dict()
    for name in arrays.keys() - wanted.keys():
        raise CheckpointError(path, f"is surplus: {title} has no such tensor", tensor=name)
    for name, parameter in wanted.items():
        if name not in arrays:
            raise CheckpointError(path, f"is missing; expected shape {tuple(parameter.shape)}", tensor=name)
        if arrays[name].shape != tuple(parameter.shape):
            problem = f"has shape {arrays[name].shape}, expected {tuple(parameter.shape)}"
            raise CheckpointError(path, problem, tensor=name)
    tensors = {name: _to_torch(arrays[name]) for name in wanted}
    if dtype is None:
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
    copies = {name: tensor.to(device, dtype, copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(copies, assign=True)
    return model.requires_grad_()


def to_tensors(model: nn.Module) -> dict[str, np.ndarray]:
    """The model's parameters under their official names, as a ``Checkpoint`` holds them.

    Arrays of a model on the CPU share its memory: copy what is to outlive the next step of training.
    """
    return {name: _to_numpy(tensor) for name, tensor in model.state_dict().items()}


def _to_torch(array: np.ndarray) -> Tensor:
    # Neither library knows the other's bfloat16, but both know 16-bit integers.
    if array.dtype == ml_dtypes.bfloat16:
        return _to_torch(array.view(np.int16)).view(torch.bfloat16)
    # from_numpy warns of arrays that cannot be written, such as mapped files; it is only read here.
    writable = array if array.flags.writeable else array.copy()
    return torch.from_numpy(np.ascontiguousarray(writable))


def _to_numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
