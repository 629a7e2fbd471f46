"""The delta rule by RWKV-7's recurrence: no decay, a = -k, b = k = beta k.

Time-parallel, in C++ and by Triton kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rookery.ops.wkv7.chunked import wkv7_chunked
from rookery.ops.wkv7.native import wkv7_native
from rookery.ops.wkv7.triton import wkv7_triton

__all__ = ["delta_rule_chunked", "delta_rule_native", "delta_rule_triton"]


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


def delta_rule_triton(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.delta_rule`: inputs in float32, bfloat16 or float16."""
    # The product of what has 16 bits has more of them.
    return _by(wkv7_triton, q, k, v, beta.float(), state, starts)


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
    return wkv7(q, torch.zeros_like(written), written, v, -k, written, state, starts)
