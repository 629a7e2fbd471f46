"""GLA's recurrence by that of RWKV-6, time-parallel, in C++ and by Triton kernels.

RWKV-6 reads the state before it decays and before the token is written:

    q_t S_t = (q_t alpha_t) S_{t-1} + (q_t . k_t) v_t

so its receptance is q alpha, its bonus zero, and the present token is added outside. The Triton kernels do
that themselves where there is no bonus.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rookery.ops.wkv6.chunked import wkv6_chunked
from rookery.ops.wkv6.native import wkv6_native
from rookery.ops.wkv6.triton import wkv6_triton

__all__ = ["gla_chunked", "gla_native", "gla_triton"]


def gla_chunked(
    q: Tensor, log_alpha: Tensor, k: Tensor, v: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.gla`, in one dtype."""
    return _by(wkv6_chunked, q, log_alpha, k, v, state, starts)


def gla_native(
    q: Tensor, log_alpha: Tensor, k: Tensor, v: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.gla`, in float32."""
    return _by(wkv6_native, q, log_alpha, k, v, state, starts)


def gla_triton(
    q: Tensor, log_alpha: Tensor, k: Tensor, v: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.gla`: inputs in float32, bfloat16 or float16, the state in float32."""
    return wkv6_triton(q, log_alpha, k, v, None, state, starts)


def _by(
    wkv6: Callable[..., tuple[Tensor, Tensor]],
    q: Tensor,
    log_alpha: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    no_bonus = q.new_zeros(q.shape[2:])
    past, after = wkv6(q * log_alpha.exp(), log_alpha, k, v, no_bonus, state, starts)
    return past + (q * k).sum(-1, keepdim=True) * v, after
