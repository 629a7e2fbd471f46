"""Random models of every version, small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rookery.checkpoints import DTYPES, Checkpoint, expected_shapes
from rookery.config import VERSIONS, ModelConfig, sized

MakeModel = Callable[..., Checkpoint]


def _config(version: Any, **changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = {"vocab_size": 71, "width": 32, "num_layers": 2, "ffn_width": 40}
    if version != "4":
        sizes["head_size"] = 8
    if version == "6":
        sizes |= {"mix_rank": 3, "decay_rank": 5}
    if version == "7":
        sizes |= {"decay_rank": 3, "iclr_rank": 5, "value_rank": 7, "gate_rank": 6}
    return sized(version, **(sizes | changes))


def _model(version: Any, dtype: str = "float32", tokenizer: Any = None, **changes: Any) -> Checkpoint:
    config = _config(version, **changes)
    rng = np.random.default_rng(7)
    tensors = {
        name: rng.standard_normal(shape).astype(DTYPES[dtype])
        for name, shape in expected_shapes(config).items()
    }
    return Checkpoint(config=config, tensors=tensors, tokenizer=tokenizer)


def _assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.config == other.config
    assert one.tokenizer == other.tokenizer
    assert list(one.tensors) == list(other.tensors)
    for name, tensor in one.tensors.items():
        assert other.tensors[name].dtype == tensor.dtype, name
        assert other.tensors[name].shape == tensor.shape, name
        assert other.tensors[name].tobytes() == tensor.tobytes(), name


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """``make_model(version, dtype="float32", tokenizer=None, **sizes)``: random weights."""
    return _model


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Checkpoint, Checkpoint], None]:
    """Checks that two checkpoints are equal bit for bit."""
    return _assert_same


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param
