"""Inputs and calls of the four recurrences, as a model makes them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rookery import ops
from rookery.ops.triton import interpreting

__all__ = ["call", "implementation_of", "inputs_of", "leaves", "state_of"]


def inputs_of(
    name: str, B: int, T: int, H: int, K: int, *, dtype: torch.dtype, generator: torch.Generator
) -> list[Tensor]:
    """Random inputs of a recurrence, in the order of its signature, all of one dtype.

    Decays, keys and gates have the ranges of the models; the channels of wkv4 are H K.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device)

    if name == "wkv4":
        log_w, u = -(normal(H * K) - 1).exp(), 0.5 * normal(H * K)
        inputs = [log_w, u, normal(B, T, H * K), normal(B, T, H * K)]
    else:
        r, k, v = normal(B, T, H, K), normal(B, T, H, K) * K**-0.5, normal(B, T, H, K)
        if name == "wkv7":
            # Within the model's range, -exp(-1/2), after rounding to bfloat16 as well.
            log_w = -0.604 * normal(B, T, H, K).sigmoid()
            removal = F.normalize(normal(B, T, H, K), dim=-1)
            inputs = [r, log_w, k, v, -removal, removal * normal(B, T, H, K).sigmoid()]
        else:
            moving = (H, K) if name == "wkv5" else (B, T, H, K)
            inputs = [r, -(normal(*moving) - 1).exp(), k, v, 0.5 * normal(H, K)]
    return [x.to(dtype) for x in inputs]


def state_of(name: str, B: int, H: int, K: int, *, generator: torch.Generator) -> Tensor:
    """A random state before the first token, float32."""
    if name == "wkv4":
        state = torch.randn((B, 3, H * K), generator=generator, device=generator.device)
        state[:, 1].abs_()  # the sum of weights
        return state
    return torch.randn((B, H, K, K), generator=generator, device=generator.device)


def leaves(tensors: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Copies that gradients are asked of."""
    return [x.detach().to(dtype or x.dtype, copy=True).requires_grad_() for x in tensors]


def implementation_of(name: str, device: str, dtype: torch.dtype, tokens: int) -> str:
    """What computes it: the Triton kernels where there are some, else what a call without a wish gets."""
    runs = device != "cpu" or interpreting()
    forced = "triton" if runs and "triton" in ops.implementations(name) else None
    return ops.chosen(name, tokens=tokens, device=device, dtype=dtype, implementation=forced)


def call(
    name: str,
    inputs: list[Tensor],
    implementation: str,
    state: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y and the state after."""
    return getattr(ops, name)(*inputs, state, starts=starts, implementation=implementation)
