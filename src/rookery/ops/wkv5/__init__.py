"""The recurrence of RWKV-5 "Eagle" (arXiv 2404.05892).

    y_t = r_t (S_{t-1} + diag(u) k_t^T v_t)
    S_t = diag(w) S_{t-1} + k_t^T v_t

Per head, with rows r, w, k, u of K channels, v and y of V channels, and the state S [K, V]. The decay w
is the same for every token; u weighs the present token. It is RWKV-6's recurrence with a decay that does not
vary, and shares its code. RWKV-5.0 has one decay and one bonus for a head: its caller expands them to [H, K].
"""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.errors import ConfigError
from rookery.ops.dispatch import Implementation, call, check_shape, check_state
from rookery.ops.in_place import in_place_row
from rookery.ops.native import native_row
from rookery.ops.triton import triton_row
from rookery.ops.wkv5.chunked import wkv5_chunked
from rookery.ops.wkv5.native import wkv5_native
from rookery.ops.wkv5.reference import wkv5_reference
from rookery.ops.wkv6.triton import wkv6_triton

__all__ = ["IMPLEMENTATIONS", "wkv5"]

IMPLEMENTATIONS = (
    native_row(wkv5_native),
    triton_row(wkv6_triton),  # RWKV-6's, which takes such a decay as it is
    Implementation(name="chunked", run=wkv5_chunked, traced=False, min_tokens=8),
    Implementation(name="reference", run=wkv5_reference),
    in_place_row("wkv5"),
)


def wkv5(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    state: Tensor | None = None,
    *,
    starts: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute y_t = r_t (S_{t-1} + diag(u) k_t^T v_t), S_t = diag(w) S_{t-1} + k_t^T v_t.

    Args:
        r: receptance [B, T, H, K].
        log_w: natural logarithm of the decay w, at most 0 and unbounded below, [H, K].
        k: key [B, T, H, K].
        v: value [B, T, H, V].
        u: bonus of the present token, [H, K].
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
    if r.dim() != 4 or v.dim() != 4:
        raise ConfigError(f"wkv5: r and v need 4 axes [B, T, H, .], but have {r.dim()} and {v.dim()}")
    B, T, H, K = r.shape
    V = v.shape[3]
    for name, x in (("r", r), ("k", k)):
        check_shape("wkv5", name, x, (B, T, H, K), "[B, T, H, K]")
    check_shape("wkv5", "v", v, (B, T, H, V), "[B, T, H, V]")
    for name, x in (("log_w", log_w), ("u", u)):
        check_shape("wkv5", name, x, (H, K), "[H, K]")
    if state is not None:
        check_state("wkv5", state, (B, H, K, V), "[B, H, K, V]", v.device)

    def fresh_state(dtype: torch.dtype) -> Tensor:
        return torch.zeros(B, H, K, V, dtype=dtype, device=v.device)

    inputs = (r, log_w, k, v, u)
    return call("wkv5", IMPLEMENTATIONS, inputs, v, state, fresh_state, starts, implementation)
