"""The recurrence of DeltaNet, the delta rule (arXiv 2406.06484, equation 1).

    S_t = (I - beta_t k_t^T k_t) S_{t-1} + beta_t k_t^T v_t
    y_t = q_t S_t

Per head, with rows q, k of K channels, v and y of V channels, a number beta, and the state S [K, V] (the
paper writes its transpose). Where |k| = 1, beta is how much of what S holds along k is replaced by v. It is
RWKV-7's without decay (``by_wkv7.py``). ``reference.py`` is the loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.errors import ConfigError
from rookery.ops.delta_rule.by_wkv7 import delta_rule_chunked, delta_rule_native, delta_rule_triton
from rookery.ops.delta_rule.reference import delta_rule_reference
from rookery.ops.dispatch import Implementation, call, check_shape, check_state
from rookery.ops.triton import triton_row

__all__ = ["IMPLEMENTATIONS", "delta_rule"]

IMPLEMENTATIONS = (
    Implementation(name="native", run=delta_rule_native, devices=("cpu",), dtypes=(torch.float32,)),
    triton_row(delta_rule_triton),
    Implementation(name="chunked", run=delta_rule_chunked, traced=False, min_tokens=8),
    Implementation(name="reference", run=delta_rule_reference),
)


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    *,
    starts: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute S_t = (I - beta_t k_t^T k_t) S_{t-1} + beta_t k_t^T v_t, y_t = q_t S_t.

    Args:
        q: query [B, T, H, K].
        k: key [B, T, H, K]; the model's has length 1.
        v: value [B, T, H, V].
        beta: strength of writing [B, T, H]; the model's is between 0 and 1.
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
        raise ConfigError(f"delta_rule: q and v need 4 axes [B, T, H, .], but have {q.dim()} and {v.dim()}")
    B, T, H, K = q.shape
    V = v.shape[3]
    for name, x in (("q", q), ("k", k)):
        check_shape("delta_rule", name, x, (B, T, H, K), "[B, T, H, K]")
    check_shape("delta_rule", "v", v, (B, T, H, V), "[B, T, H, V]")
    check_shape("delta_rule", "beta", beta, (B, T, H), "[B, T, H]")
    if state is not None:
        check_state("delta_rule", state, (B, H, K, V), "[B, H, K, V]", v.device)

    def fresh_state(dtype: torch.dtype) -> Tensor:
        return torch.zeros(B, H, K, V, dtype=dtype, device=v.device)

    inputs = (q, k, v, beta)
    return call("delta_rule", IMPLEMENTATIONS, inputs, v, state, fresh_state, starts, implementation)
