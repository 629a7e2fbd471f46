"""The recurrence of RWKV-7 "Goose" (arXiv 2503.14456).

    S_t = diag(w_t) S_{t-1} + b_t^T (a_t S_{t-1}) + k_t^T v_t
    y_t = r_t S_t

Per head, with rows r, w, k, a, b of K channels, v and y of V channels, and the state S [K, V] (the paper
writes its transpose). The model sets a = -kk and b = kk * iclr: what the state holds along the removal key kk
is taken out, and k^T v is put in. ``reference.py`` is the loop.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rookery.errors import ConfigError
from rookery.ops.dispatch import Implementation, call, check_shape, check_state, prepare
from rookery.ops.in_place import in_place_row
from rookery.ops.native import native_row
from rookery.ops.triton import triton_row
from rookery.ops.wkv7.chunked import wkv7_chunked
from rookery.ops.wkv7.native import wkv7_native
from rookery.ops.wkv7.reference import wkv7_reference
from rookery.ops.wkv7.triton import wkv7_triton

__all__ = ["IMPLEMENTATIONS", "prepare_wkv7", "wkv7"]

IMPLEMENTATIONS = (
    native_row(wkv7_native),
    triton_row(wkv7_triton),
    Implementation(name="chunked", run=wkv7_chunked, traced=False, min_tokens=8),
    Implementation(name="reference", run=wkv7_reference),
    in_place_row("wkv7"),
)


def wkv7(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    *,
    starts: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute y_t = r_t S_t, S_t = diag(w_t) S_{t-1} + b_t^T (a_t S_{t-1}) + k_t^T v_t.

    Args:
        r: receptance [B, T, H, K].
        log_w: natural logarithm of the decay w, at most 0, [B, T, H, K]; the model's is at least -exp(-1/2).
        k: key [B, T, H, K].
        v: value [B, T, H, V].
        a: what the state is read along for removal, [B, T, H, K]; the model's is -kk, |kk| = 1.
        b: where the value read is added, [B, T, H, K]; the model's is kk * iclr.
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
    inputs = (r, log_w, k, v, a, b)
    fresh_state = _check(*inputs, state)
    return call("wkv7", IMPLEMENTATIONS, inputs, v, state, fresh_state, starts, implementation)


def prepare_wkv7(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    *,
    starts: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Implementation, Tensor]:
    """Check a call of `wkv7`, and choose what computes it: for an operator of which the recurrence is a part.

    Returns:
        The implementation, and the state that it begins with.

    Raises:
        ConfigError, StateError: see `wkv7`.
    """
    inputs = (r, log_w, k, v, a, b)
    fresh_state = _check(*inputs, state)
    return prepare("wkv7", IMPLEMENTATIONS, inputs, v, state, fresh_state, starts, implementation)


def _check(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None
) -> Callable[[torch.dtype], Tensor]:
    """Check the shapes; what makes a state of zeros."""
    if r.dim() != 4 or v.dim() != 4:
        raise ConfigError(f"wkv7: r and v need 4 axes [B, T, H, .], but have {r.dim()} and {v.dim()}")
    B, T, H, K = r.shape
    V = v.shape[3]
    for name, x in (("r", r), ("log_w", log_w), ("k", k), ("a", a), ("b", b)):
        check_shape("wkv7", name, x, (B, T, H, K), "[B, T, H, K]")
    check_shape("wkv7", "v", v, (B, T, H, V), "[B, T, H, V]")
    if state is not None:
        check_state("wkv7", state, (B, H, K, V), "[B, H, K, V]", v.device)

    def fresh_state(dtype: torch.dtype) -> Tensor:
        return torch.zeros(B, H, K, V, dtype=dtype, device=v.device)

    return fresh_state
