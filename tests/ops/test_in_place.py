"""One token with the state written over, against the sequential loop."""

from __future__ import annotations

import pytest
import torch

from rookery import ops
from rookery.errors import ConfigError
from rookery.ops.triton import DEVICES

pytestmark = pytest.mark.usefixtures("watched_kernels")

torch.set_num_threads(1)


def inputs(name: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Of three streams with three heads of 24 by 24, which fill no block; and a state."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICES[0])

    heads = (3, 1, 3, 24)
    if name == "wkv4":
        state = torch.stack([normal(3, 300), normal(3, 300).exp(), normal(3, 300)], 1)
        return [-normal(300).exp(), normal(300), normal(3, 1, 300), normal(3, 1, 300)], state
    state = normal(3, 3, 24, 24)
    if name == "wkv7":
        removal = torch.nn.functional.normalize(normal(*heads), dim=-1)
        return [
            normal(*heads),
            -normal(*heads).sigmoid(),
            normal(*heads),
            normal(*heads),
            -removal,
            removal,
        ], state
    decay = -(normal(3, 24) if name == "wkv5" else normal(*heads)).exp()
    return [normal(*heads), decay, normal(*heads), normal(*heads), normal(3, 24)], state


@pytest.mark.parametrize("name", ["wkv4", "wkv5", "wkv6", "wkv7"])
def test_a_step_in_place_is_a_step(name):
    tensors, state = inputs(name)
    function = getattr(ops, name)
    before = state.clone()
    wanted, after = function(*tensors, before, implementation="reference")
    got, same = function(*tensors, state, implementation="in place")
    assert same is state
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, after, rtol=1e-5, atol=1e-5)
    half = [x.bfloat16() if x.dim() > 2 else x for x in tensors]
    y, _ = function(*half, before, implementation="in place")
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), wanted, rtol=0.05, atol=0.05)


def test_what_is_no_step_is_refused():
    tensors, state = inputs("wkv6")
    longer = [x.repeat(1, 2, 1, 1) if x.dim() == 4 else x for x in tensors]
    with pytest.raises(ConfigError, match="one token"):
        ops.wkv6(*longer, state, implementation="in place")
    with pytest.raises(ConfigError, match="one token"):
        ops.wkv6(*tensors, state.transpose(2, 3), implementation="in place")
    r, log_w, k, v, _ = tensors
    with pytest.raises(ConfigError, match="'in place' is unknown"):
        ops.gla(r, log_w, k, v, state, implementation="in place")
