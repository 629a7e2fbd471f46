"""Models whose weights are all random, so that a mistake about any one of them shows."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rookery.config import ModelConfig
from rookery.models import RWKV


def _normal(centre: float, spread: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    return lambda p, g: centre + spread * torch.randn(p.shape, generator=g)


def _uniform(low: float, high: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    return lambda p, g: low + (high - low) * torch.rand(p.shape, generator=g)


def _map(p: Tensor, g: torch.Generator) -> Tensor:
    """A matrix [out, in] that keeps the variance of its input."""
    return torch.randn(p.shape, generator=g) / p.shape[-1] ** 0.5


def _transposed_map(p: Tensor, g: torch.Generator) -> Tensor:
    """The same for low-rank matrices, which are [in, out]."""
    return torch.randn(p.shape, generator=g) / p.shape[-2] ** 0.5


# The first pattern that a parameter's name matches says how it is drawn.
_DRAWS = {
    r"emb\.weight$": _normal(0, 1),
    r"ln\w+\.weight$": _normal(1, 0.2),
    r"ln\w+\.bias$": _normal(0, 0.2),
    r"\.weight$": _map,
    r"(\.[wavg][12]|_w[12])$": _transposed_map,
    r"\.time_decay$": _uniform(-5, 0.5),
    r"\.w0$": _uniform(-6, 1),
    r"\.time_first$": _normal(-0.5, 0.5),
    r"\.time_faaaa$": _normal(0, 0.5),
    r"\.(time_mix|time_maa|x)_\w$": _uniform(0, 1),
    r"\.(k_k|k_a)$": _normal(1, 0.3),
    r"\.(a0|v0|r_k)$": _normal(0, 0.5),
}


@pytest.fixture(scope="session")
def random_model() -> Callable[..., RWKV]:
    """``random_model(config, seed=0, dtype=torch.float32)``: every weight random, none idle."""

    def make(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> RWKV:
        model = RWKV(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                draw = next(draw for pattern, draw in _DRAWS.items() if re.search(pattern, name))
                parameter.copy_(draw(parameter, generator))
        return model.to(dtype)

    return make
