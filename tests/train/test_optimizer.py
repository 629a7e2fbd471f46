"""Clipping: torch's, without a pass over gradients that are small enough."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rookery.train.optimizer import clip_gradients


def parameters(scale: float) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.zeros(shape)) for shape in ((7, 5), (11,), (3,))]
    for parameter in made[:2]:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.mark.parametrize("scale", [1e-3, 0.1, 10.0, float("nan"), float("inf")])
def test_gradients_are_those_of_torch_to_the_bit(scale: float) -> None:
    ours, theirs = parameters(scale), parameters(scale)
    norm = clip_gradients(ours, 0.5)
    wanted = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    assert torch.equal(torch.tensor(norm), wanted) or scale != scale
    for x, y in zip(ours, theirs, strict=True):
        assert x.grad is y.grad is None or torch.equal(x.grad.nan_to_num(7), y.grad.nan_to_num(7))


@pytest.mark.parametrize(("scale", "written"), [(1e-3, False), (10.0, True)])
def test_small_gradients_are_not_written(scale: float, written: bool) -> None:
    ours = parameters(scale)
    before = ours[0].grad._version
    clip_gradients(ours, 0.5)
    assert (ours[0].grad._version > before) == written
