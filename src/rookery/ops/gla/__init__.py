"""The recurrence of gated linear attention, GLA (arXiv 2312.06635, equation 3).

    S_t = diag(alpha_t) S_{t-1} + k_t^T v_t
    y_t = q_t S_t

Per head, with rows q, alpha, k of K channels, v and y of V channels, and the state S [K, V]. It is RWKV-6's
without its bonus, read after the token was written instead of before (``by_wkv6.py``). ``reference.py`` is
the loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.errors import ConfigError
from rookery.ops.dispatch import Implementation, call, check_shape, check_state
from rookery.ops.gla.by_wkv6 import gla_chunked, gla_native, gla_triton
from rookery.ops.gla.reference import gla_reference
from rookery.ops.triton import triton_row

__all__ = ["IMPLEMENTATIONS", "gla"]

IMPLEMENTATIONS = (
    Implementation(name="native", run=gla_native, devices=("cpu",), dtypes=(torch.float32,)),
    triton_row(gla_triton),
    Implementation(name="chunked", run=gla_chunked, traced=False, min_tokens=8),
    Implementation(name="reference", run=gla_reference),
)


def gla(
    q: Tensor,
    log_alpha: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None = None,
    *,
    starts: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute S_t = diag(alpha_t) S_{t-1} + k_t^T v_t, y_t = q_t S_t.

    Args:
        q: query [B, T, H, K].
        log_alpha: natural logarithm of the decay alpha, at most 0 and unbounded below, [B, T, H, K].
        k: key [B, T, H, K].
        v: value [B, T, H, V].
        state: S before the first token, [B, H, K, V]; None for zeros.
        starts: [B, T] bool, true at the first token of each document: S is zero before it.
        implementation: "native", "triton", "chunked" or "reference"; None chooses.

    Returns:
        y [B, T, H, V] in the dtype of v, and S after the last token, [B, H, K, V], in float32 (float64 where
        an input is). All is computed in that dtype.

    Raises:
        ConfigError: shapes, dtypes or options that do not fit.
        StateError: the state is of other shapes or on another device.
    """
    if q.dim() != 4 or v.dim() != 4:
        raise ConfigError(f"gla: q and v need 4 axes [B, T, H, .], but have {q.dim()} and {v.dim()}")
    B, T, H, K = q.shape
    V = v.shape[3]
    for name, x in (("q", q), ("log_alpha", log_alpha), ("k", k)):
        check_shape("gla", name, x, (B, T, H, K), "[B, T, H, K]")
    check_shape("gla", "v", v, (B, T, H, V), "[B, T, H, V]")
    if state is not None:
        check_state("gla", state, (B, H, K, V), "[B, H, K, V]", v.device)

    def fresh_state(dtype: torch.dtype) -> Tensor:
        return torch.zeros(B, H, K, V, dtype=dtype, device=v.device)

    return call("gla", IMPLEMENTATIONS, (q, log_alpha, k, v), v, state, fresh_state, starts, implementation)
