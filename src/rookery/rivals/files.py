"""Models of any mixer in one file: safetensors, with the configuration and the tokenizer in its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rookery import checkpoints
from rookery.checkpoints import tokenizer_spec
from rookery.checkpoints.huggingface import read_json, read_tokenizer
from rookery.checkpoints.safetensors_file import read_safetensors, write_safetensors
from rookery.checkpoints.saving import writing
from rookery.errors import CheckpointError, ConfigError
from rookery.models import RWKV, from_checkpoint, to_tensors
from rookery.models.convert import fill
from rookery.models.sequence_model import SequenceModel
from rookery.rivals.config import RivalConfig
from rookery.rivals.gpt_neox import MODEL_TYPE, load_gpt_neox
from rookery.rivals.model import Rival

__all__ = ["load", "load_tokenizer", "save"]

_METADATA_KEY = "rookery.rival"
_SUFFIX = ".safetensors"


def save(
    model: SequenceModel[Any, Any], path: str | Path, *, tokenizer: dict[str, Any] | None = None
) -> None:
    """Save a model with its configuration; a reader finds the old file or the new one, never a part.

    An RWKV model is saved as a checkpoint, which all other commands read.

    Args:
        model: of any mixer.
        path: a ``.safetensors`` file (RWKV: whatever ``rookery.checkpoints.save`` writes).
        tokenizer: the specification of its tokenizer (``Tokenizer.spec``).

    Raises:
        CheckpointError: the file's suffix, a dtype that files do not have (float64), or the disk refuses.
    """
    path = Path(path)
    tensors = to_tensors(model)
    for name, tensor in tensors.items():
        if tensor.dtype not in checkpoints.DTYPES.values():
            known = ", ".join(checkpoints.DTYPES)
            raise CheckpointError(path, f"has dtype {tensor.dtype}, but weights are {known}", tensor=name)
    if isinstance(model, RWKV):
        checkpoint = checkpoints.assemble(tensors, tokenizer=tokenizer, path=path)
        checkpoints.save(checkpoint, path)
        return
    if path.suffix != _SUFFIX:
        raise CheckpointError(path, f"has no suffix of a format that rivals are written in: {_SUFFIX}")
    metadata = {
        "format": "pt",
        _METADATA_KEY: json.dumps(model.config.to_dict()),
        tokenizer_spec.METADATA_KEY: tokenizer_spec.encode(tokenizer),
    }
    with writing(path) as file:
        write_safetensors(file, tensors, metadata)


def load(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> SequenceModel[Any, Any]:
    """Load what ``save`` wrote, any RWKV checkpoint, or a Hugging Face folder of GPT-NeoX (Pythia).

    Args:
        path: a file, or a folder.
        device: where the model is to be.
        dtype: of all parameters; by default the narrowest that holds every tensor exactly.

    Raises:
        CheckpointError: the file is broken, or holds no model that is known; the message names the tensor.
    """
    path = Path(path)
    if _is_gpt_neox(path):
        return load_gpt_neox(path, device=device, dtype=dtype)
    rival = _rival_file(path)
    if rival is None:
        return from_checkpoint(checkpoints.load(path), device=device, dtype=dtype)
    tensors, metadata = read_safetensors(rival)
    try:
        values = json.loads(metadata[_METADATA_KEY])
        if not isinstance(values, dict):
            raise ConfigError(f"it is a {type(values).__name__}, not an object")
        config = RivalConfig.from_dict(values)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(rival, f"the configuration in its metadata is broken: {error}") from error
    with torch.device("meta"):
        model = Rival(config)
    return fill(model, tensors, path=rival, title=config.mixer, device=device, dtype=dtype)


def load_tokenizer(path: str | Path) -> dict[str, Any] | None:
    """The specification of the tokenizer of what ``load`` takes; None where there is none.

    Raises:
        CheckpointError: as ``load``.
    """
    path = Path(path)
    if _is_gpt_neox(path):
        return read_tokenizer(path, {})
    rival = _rival_file(path)
    if rival is None:
        return checkpoints.load(path).tokenizer
    text = read_safetensors(rival)[1].get(tokenizer_spec.METADATA_KEY)
    return None if text is None else tokenizer_spec.decode(text, rival)


def _is_gpt_neox(path: Path) -> bool:
    settings = path / "config.json"
    return settings.is_file() and read_json(settings).get("model_type") == MODEL_TYPE


def _rival_file(path: Path) -> Path | None:
    """The file of a rival that a path means; None where it means something else."""
    file = path / f"model{_SUFFIX}" if path.is_dir() else path
    try:
        with file.open("rb") as opened:
            head = opened.read(9)
    except OSError:
        return None
    if head[8:] != b"{":
        return None
    return file if _METADATA_KEY in read_safetensors(file)[1] else None
