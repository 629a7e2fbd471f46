"""A run that takes about a second: a tiny model, a little text, few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rookery.train import TrainConfig

TEXT = "".join(f"{n} bottles of beer on the wall, {n} bottles of beer.\n" for n in range(99, 0, -1))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "beer.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def tiny(text_file: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Makes the configuration of such a run; options replace its own."""

    def make(**options: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "data": (str(text_file),),
            "out": str(tmp_path / "run"),
            "layers": 2,
            "width": 32,
            "head_size": 16,
            "context": 16,
            "batch": 4,
            "tokens": 16 * 4 * 8,
            "learning_rate": 5e-3,
            "valid_every": 3,
            "device": "cpu",
        }
        return TrainConfig(**(values | options))

    return make
