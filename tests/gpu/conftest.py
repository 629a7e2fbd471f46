"""Tests of what runs on a GPU: on a machine's own, or where there is none on a stand-in (`make test-gpu`).

They are a run of their own, since a process has the stand-in before it imports torch.
"""

from __future__ import annotations

from pathlib import Path

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
def on_a_stand_in() -> None:
    """For tests of the stand-in itself."""
    if REAL:
        pytest.skip("there is a GPU here")
