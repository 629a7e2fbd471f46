"""The sample models of rwkv.cpp, official weights with the logits that they must give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rookery import native
from rookery.checkpoints import load
from rookery.models import from_checkpoint
from rookery.state import initial_state


@pytest.mark.parametrize(("name", "version"), [("4v0-660K", "4"), ("5v1-730K", "5.0")], ids=["4", "5.0"])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one by one"])
def test_logits_after_a_prompt(shared_data: Path, name: str, version: str, at_once: bool):
    model = from_checkpoint(load(shared_data / "rwkv.cpp" / f"tiny-rwkv-{name}-FP32.bin"))
    # What rwkv.cpp calls 5.1 has no gate: it is 5.0 elsewhere.
    assert model.config.version == version
    wanted = np.fromfile(shared_data / "rwkv.cpp" / f"expected-logits-{name}.bin", np.float32)
    tokens = torch.tensor([list(b'"in')])
    state = None
    with torch.no_grad():
        for span in [tokens] if at_once else tokens.split(1, dim=1):
            logits, state = model(span, state, last_only=True)
    assert wanted.shape == (256,)
    assert np.abs(logits[0, 0].numpy() - wanted).sum() < 0.01


@pytest.mark.parametrize("name", ["4v0-660K", "5v1-730K"], ids=["4", "5.0"])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one by one"])
def test_native_logits_after_a_prompt(shared_data: Path, name: str, at_once: bool):
    model = native.load(load(shared_data / "rwkv.cpp" / f"tiny-rwkv-{name}-FP32.bin"))
    wanted = np.fromfile(shared_data / "rwkv.cpp" / f"expected-logits-{name}.bin", np.float32)
    tokens = np.array([list(b'"in')])
    state = initial_state(model.config)
    for span in [tokens] if at_once else np.split(tokens, 3, axis=1):
        logits, state = model.forward(span, state, last_only=True)
    assert np.abs(logits[0, 0] - wanted).sum() < 0.01
