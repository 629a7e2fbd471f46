"""A comparison that takes seconds: two mixers, tiny models, one short text, one task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rookery.evaluate.compare.config import CompareConfig, data_set

TEXT = "".join(f"{n} bottles of beer on the wall, {n} bottles of beer.\n" for n in range(299, 0, -1))


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "beer.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def tiny(text_file: Path) -> Callable[..., CompareConfig]:
    """Makes the configuration of such a comparison; options replace its own."""

    def make(**options: Any) -> CompareConfig:
        values: dict[str, Any] = {
            "data": (data_set(str(text_file)),),
            "mixers": ("rwkv7", "attention"),
            "parameters": 60_000,
            "layers": 2,
            "width": 32,
            "seeds": 1,
            "tokens": 512,
            "context": 32,
            "batch": 2,
            "contexts": (16, 64),
            "valid_tokens": 256,
            "tasks": ("parity",),
            "task_parameters": 30_000,
            "task_layers": 1,
            "task_width": 32,
            "task_batch_tokens": 128,
            "training_lengths": (16, 32),
            "generation_lengths": (16, 32),
            "threads": 1,
        }
        return CompareConfig(**(values | options))

    return make
