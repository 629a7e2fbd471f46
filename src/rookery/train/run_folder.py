"""What a run leaves on the disk.

    model.safetensors    weights and tokenizer: what every other command reads
    training-state.pt    all that is needed to go on exactly: weights, optimizer, counters
    metrics.csv          one row for each step and each validation
    loss.png             the curves
    config.json          the options of the run

Each is written to a temporary file and renamed, so that a crash leaves the last whole one. The training state
has its own copy of the weights: it is one file, hence one moment of the run.
"""

from __future__ import annotations

import json
import pickle
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from rookery import checkpoints
from rookery.checkpoints import Checkpoint
from rookery.errors import CheckpointError, ConfigError
from rookery.files import atomic_write
from rookery.models import RWKV, to_tensors
from rookery.tokenizers import Tokenizer
from rookery.train.config import TrainConfig

__all__ = ["Counters", "RunFolder", "TrainingState"]

_FORMAT = 1


@dataclass
class Counters:
    """Where a run is."""

    step: int = 0
    """Optimizer steps done."""

    seconds: float = 0.0
    """Seconds of training in the sittings before this one."""

    validated_step: int = 0
    """The step of the last validation."""

    finished: bool = False
    """The budget is spent and the last validation done."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What training-state.pt holds."""

    counters: Counters
    model_config: dict[str, Any]
    tokenizer: dict[str, Any]
    fingerprint: str
    """Of the training data."""
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def model(self) -> Path:
        """The checkpoint."""
        return self.path / "model.safetensors"

    @property
    def training_state(self) -> Path:
        """What resuming needs beside the configuration."""
        return self.path / "training-state.pt"

    @property
    def metrics(self) -> Path:
        """The record."""
        return self.path / "metrics.csv"

    @property
    def plot(self) -> Path:
        """The picture of the record."""
        return self.path / "loss.png"

    @property
    def config(self) -> Path:
        """The options."""
        return self.path / "config.json"

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """A folder for a new run: ``config.out``, or ``runs/DATE-NAME`` with a number if that is taken.

        Raises:
            ConfigError: there is a run in it already, and ``config.overwrite`` is not set.
        """
        folder = cls(Path(config.out) if config.out is not None else _free_name(config))
        files = (folder.config, folder.model, folder.training_state, folder.metrics, folder.plot)
        taken = [file for file in files if file.exists()]
        if taken and not config.overwrite:
            raise ConfigError(
                f"{folder.path}: there is a run here already ({taken[0].name}); go on with it by --resume, "
                f"replace it by --overwrite, or choose another folder with --out"
            )
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder.path}: cannot make the run folder: {error.strerror}") from error
        for file in taken:
            file.unlink()
        with atomic_write(folder.config) as file:
            file.write((json.dumps(config.to_dict(), indent=2) + "\n").encode())
        return folder

    def read_config(self) -> TrainConfig:
        """The options that the run was started with.

        Raises:
            ConfigError: there is no run in this folder, or its config.json is broken.
        """
        try:
            values = json.loads(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{self.path}: there is no run in this folder to resume") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.config}: cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{self.config}: not a training configuration")
        return TrainConfig.from_dict(values)

    def save(self, model: RWKV, tokenizer: Tokenizer, state: TrainingState) -> None:
        """Write the model and the training state."""
        with atomic_write(self.training_state) as file:
            torch.save({"format": _FORMAT, **vars(state), "counters": asdict(state.counters)}, file)
        checkpoint = Checkpoint(
            config=model.config, tensors=to_tensors(model), tokenizer=tokenizer.to_spec(), path=None
        )
        checkpoints.save(checkpoint, self.model)

    def load(self) -> TrainingState:
        """Read the training state. Nothing but tensors and plain values is read from the file.

        Raises:
            ConfigError: the run has no checkpoint yet, or it is finished.
            CheckpointError: the file is broken.
        """
        path = self.training_state
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise ConfigError(
                f"{self.path}: this run ended before its first checkpoint; start it anew with --overwrite"
            ) from None
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                path, f"not a training state, or cut short ({type(error).__name__})"
            ) from error
        with suppress(TypeError, AttributeError, KeyError):
            if content.pop("format") == _FORMAT:
                return TrainingState(**(content | {"counters": Counters(**content["counters"])}))
        raise CheckpointError(path, f"not a training state of format {_FORMAT}, which this version reads")


def _free_name(config: TrainConfig) -> Path:
    first = Path(config.data[0]).resolve()
    name = f"{datetime.now():%Y-%m-%d}-{first.stem or 'data'}"
    number = 1
    path = Path("runs") / name
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path
