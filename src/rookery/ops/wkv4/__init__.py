"""The recurrence of RWKV-4 "Dove" (arXiv 2305.13048, equations 11 to 20).

          sum_{i<t} exp((t-1-i) w + k_i) v_i + exp(u + k_t) v_t
    y_t = -----------------------------------------------------
            sum_{i<t} exp((t-1-i) w + k_i) + exp(u + k_t)

Per channel, with the logarithm w of the decay and the bonus u of the present token. So that no exponential
overflows, the state keeps both sums scaled by exp(-p), where p is the largest exponent in them:

    q = max(p, u + k_t)    y_t = (e^(p-q) a + e^(u+k_t-q) v_t) / (e^(p-q) b + e^(u+k_t-q))
    q = max(p + w, k_t)    a <- e^(p+w-q) a + e^(k_t-q) v_t    b <- e^(p+w-q) b + e^(k_t-q)    p <- q

Before the first token a = b = 0 and p = -1e30: a state of zeros alone is wrong. ``reference.py`` is the loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.errors import ConfigError
from rookery.ops.dispatch import Implementation, call, check_shape, check_state
from rookery.ops.in_place import in_place_row
from rookery.ops.native import native_row
from rookery.ops.triton import triton_row
from rookery.ops.wkv4.chunked import wkv4_chunked
from rookery.ops.wkv4.native import wkv4_native
from rookery.ops.wkv4.reference import wkv4_reference
from rookery.ops.wkv4.triton import wkv4_triton
from rookery.state import NO_MAXIMUM

__all__ = ["IMPLEMENTATIONS", "wkv4"]

IMPLEMENTATIONS = (
    native_row(wkv4_native),
    triton_row(wkv4_triton),
    Implementation(name="chunked", run=wkv4_chunked, traced=False, min_tokens=16),
    Implementation(name="reference", run=wkv4_reference),
    in_place_row("wkv4"),
)


def wkv4(
    log_w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None = None,
    *,
    starts: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute y_t, the mean of the values so far, each weighed by exp(key + decay since).

    Args:
        log_w: natural logarithm of the decay, at most 0, [A].
        u: bonus of the present token's key, [A].
        k: key [B, T, A].
        v: value [B, T, A].
        state: (numerator a, denominator b, maximum p) before the first token, [B, 3, A]; None: (0, 0, -1e30).
        starts: [B, T] bool, true at the first token of each document: the state is (0, 0, -1e30) before it.
        implementation: "native", "triton", "chunked" or "reference"; None chooses.

    Returns:
        y [B, T, A] in the dtype of v, and the state after the last token, [B, 3, A], in float32 (float64
        where an input is). All is computed in that dtype.

    Raises:
        ConfigError: shapes, dtypes or options that do not fit.
        StateError: the state is of other shapes or on another device.
    """
    if v.dim() != 3:
        raise ConfigError(f"wkv4: v needs 3 axes [B, T, A], but has {v.dim()}")
    B, T, A = v.shape
    for name, x in (("k", k), ("v", v)):
        check_shape("wkv4", name, x, (B, T, A), "[B, T, A]")
    for name, x in (("log_w", log_w), ("u", u)):
        check_shape("wkv4", name, x, (A,), "[A]")
    if state is not None:
        check_state("wkv4", state, (B, 3, A), "[B, 3, A]", v.device)

    def fresh_state(dtype: torch.dtype) -> Tensor:
        fresh = torch.zeros(B, 3, A, dtype=dtype, device=v.device)
        fresh[:, 2] = NO_MAXIMUM
        return fresh

    return call("wkv4", IMPLEMENTATIONS, (log_w, u, k, v), v, state, fresh_state, starts, implementation)
