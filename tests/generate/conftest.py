"""Small random models of every version, and a backend that says what a test has it say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rookery
from rookery import checkpoints
from rookery.config import ModelConfig, sized
from rookery.generate import LanguageModel
from rookery.generate.sampling import SamplingParams
from rookery.models import RWKV, init_weights, to_tensors
from rookery.state import State, initial_state
from rookery.tokenizers import ByteTokenizer

torch.set_num_threads(1)


def write_model(path: Path, config: ModelConfig, *, seed: int, tokenizer: dict[str, Any] | None) -> Path:
    """Random weights, far enough from the initial ones that every one matters."""
    model = RWKV(config)
    init_weights(model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    tensors = to_tensors(model)
    checkpoints.save(checkpoints.Checkpoint(config=config, tensors=tensors, tokenizer=tokenizer), path)
    return path


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> Callable[..., Path]:
    """The file of a tiny random model over bytes; the same arguments give the same file."""
    folder = tmp_path_factory.mktemp("models")

    def make(version: str = "7", *, seed: int = 1, tokenizer: bool = True, vocab_size: int = 256) -> Path:
        path = folder / f"{version}-{seed}-{tokenizer}-{vocab_size}.safetensors"
        if not path.exists():
            config = sized(version, vocab_size=vocab_size, width=32, num_layers=2, head_size=None)
            spec = {"kind": "world" if vocab_size == 65536 else "bytes"} if tokenizer else None
            write_model(path, config, seed=seed, tokenizer=spec)
        return path

    return make


@pytest.fixture(scope="session")
def model(model_file) -> LanguageModel:
    """A tiny RWKV-7 over bytes."""
    return rookery.load(model_file())


class ScriptedBackend:
    """Says what ``say`` returns for the bytes that a stream has read, and knows what each state has read."""

    config = sized("4", vocab_size=256, width=1, num_layers=1)

    def __init__(self, say: Callable[[bytes], int]):
        self.say = say
        self.read = [b""]

    def initial_state(self, batch: int = 1) -> State[np.ndarray]:
        return initial_state(self.config, batch)

    def forward(self, tokens: np.ndarray, state: State[np.ndarray], *, last_only: bool = False):
        self.read.append(self.what(state) + bytes(tokens[0].tolist()))
        after = initial_state(self.config)
        after.time_shift[:] = len(self.read) - 1
        logits = np.full((1, 1, 256), -1e9, np.float32)
        logits[0, 0, self.say(self.read[-1])] = 0
        return logits, after

    def what(self, state: State[np.ndarray]) -> bytes:
        return self.read[int(state.time_shift.item())]

    def to_numpy(self, state: State[np.ndarray]) -> State[np.ndarray]:
        return State(*(part.copy() for part in state))

    def from_numpy(self, state: State[np.ndarray]) -> State[np.ndarray]:
        return self.to_numpy(state)


@pytest.fixture
def scripted() -> Callable[[dict[str, Any]], LanguageModel]:
    """A model that writes ``script[text]`` once it has read something that ends with ``text``."""

    def make(script: dict[str, str | bytes]) -> LanguageModel:
        rows = {
            cue.encode(): line if isinstance(line, bytes) else line.encode() for cue, line in script.items()
        }

        def say(read: bytes) -> int:
            for cue, line in rows.items():
                where = read.rfind(cue)
                said = read[where + len(cue) :]
                if where >= 0 and line.startswith(said):
                    return line[len(said)] if len(said) < len(line) else 0
            return 0

        return LanguageModel(ScriptedBackend(say), ByteTokenizer())

    return make


@pytest.fixture(scope="session")
def near() -> Callable[[SamplingParams, float], SamplingParams]:
    """``near(params, slack)``: with cuts that much higher. Sums are taken in another order than by the
    definition: where a cut falls within their rounding, either side of it is right.
    """

    def move(cut: float, slack: float) -> float:
        return min(max(cut * (1 + slack), 0.0), 1.0) if cut < 1 else cut

    def moved(params: SamplingParams, slack: float) -> SamplingParams:
        return replace(params, top_p=move(params.top_p, slack), min_p=move(params.min_p, slack))

    return moved
