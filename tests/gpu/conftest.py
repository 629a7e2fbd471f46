"""Tests of what runs on a GPU: on a machine's own, or where there is none on a stand-in (`make test-gpu`).

They are a run of their own, since a process has the stand-in before it imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import stand_in

REAL = Path("/dev/nvidiactl").exists()
WHY_NOT = None if REAL else stand_in.why_not()

if not REAL and WHY_NOT is None:
    stand_in.load()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a device there is nothing to test."""
    if WHY_NOT is not None:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=WHY_NOT))


@pytest.fixture(scope="session")
def small_model(random_model: Callable[..., Any]) -> Callable[..., Any]:
    """``small_model(version, vocab_size=256, layers=2)``: two heads of 16, where a version has heads."""
    from rookery.config import sized

    def make(version: str, *, vocab_size: int = 256, layers: int = 2) -> Any:
        head_size = None if version == "4" else 16
        return random_model(
            sized(version, vocab_size=vocab_size, width=32, num_layers=layers, head_size=head_size)
        )

    return make


@pytest.fixture(scope="session")
def on_a_stand_in() -> None:
    """For tests of the stand-in itself."""
    if REAL:
        pytest.skip("there is a GPU here")
