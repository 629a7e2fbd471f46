"""RWKV-5's recurrence, time-parallel: RWKV-6's, with the decays inside a chunk computed once for all."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rookery.ops.chunks import segments
from rookery.ops.recompute import recomputed
from rookery.ops.wkv6.chunked import CHUNK, decayed_outer_products

__all__ = ["wkv5_chunked"]


def wkv5_chunked(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv5`, in one dtype."""
    parts = segments(v.shape[1], CHUNK, v.shape[0] * v.shape[2], v.device.type)
    return recomputed(_segment, parts, (log_w, u), (r, k, v), state, starts)


def _segment(
    fixed: Sequence[Tensor], moving: Sequence[Tensor], state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    log_w, u = fixed
    r, k, v = moving
    decays = log_w[:, None].expand(-1, min(CHUNK, v.shape[1]), -1)[None, None]
    return decayed_outer_products(r, decays, k, v, u, state, starts)
