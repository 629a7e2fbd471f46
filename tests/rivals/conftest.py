"""Models of every mixer, small, with all parameters random, so that a mistake about any one of them shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rookery.rivals import MIXERS, build, sizes_for

# What a mixer is made with beside the sizes, so that little models have several heads.
OPTIONS: dict[str, dict[str, Any]] = {
    "rwkv4": {},
    "rnn": {},
    "lstm": {},
    "aft-simple": {},
    "aft": {"context": 64, "position_rank": 3},
}


@pytest.fixture(scope="session")
def random_rival() -> Callable[..., Any]:
    """``random_rival(name, dtype=torch.float64, **sizes)``."""

    def make(name: str, dtype: torch.dtype = torch.float64, **sizes: Any) -> Any:
        chosen = (
            {"vocab_size": 29, "width": 16, "num_layers": 2} | OPTIONS.get(name, {"head_size": 8}) | sizes
        )
        model = build(sizes_for(name, **chosen))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if key == "emb.weight":
                    parameter.copy_(noise)
                elif parameter.dim() == 2:
                    parameter.copy_(noise / parameter.shape[-1] ** 0.5)
                else:
                    parameter.add_(0.2 * noise)
        return model.to(dtype)

    return make


@pytest.fixture(scope="session")
def models(random_rival) -> dict[str, Any]:
    return {name: random_rival(name) for name in MIXERS}
