"""The delta rule by RWKV-7's recurrence, time-parallel and in C++: no decay, a = -k, b = k = beta k."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rookery.ops.wkv7.chunked import wkv7_chunked
from rookery.ops.wkv7.native import wkv7_native

__all__ = ["delta_rule_chunked", "delta_rule_native"]


def delta_rule_chunked(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.delta_rule`, in one dtype."""
    return _by(wkv7_chunked, q, k, v, beta, state, starts)


def delta_rule_native(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.delta_rule`, in float32."""
    return _by(wkv7_native, q, k, v, beta, state, starts)


def _by(
    wkv7: Callable[..., tuple[Tensor, Tensor]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    written = beta[..., None] * k
    return wkv7(q, torch.zeros_like(k), written, v, -k, written, state, starts)
