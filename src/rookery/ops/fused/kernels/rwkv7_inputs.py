"""The inputs of RWKV-7's recurrence: a program computes some tokens of one head.

Names: inputs and results [rows, H K], rows the tokens of all streams; vectors [H K].
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from rookery.ops.fused.kernels.parts import head_tile, numbers, put, put_sum, take

__all__ = ["backward", "forward"]

FASTEST_LOG_DECAY: tl.constexpr = tl.constexpr(-0.6065306597126334)
SMALLEST_NORM: tl.constexpr = tl.constexpr(1e-12)


@triton.jit
def _key(k, k_k):
    """kappa, 1 / |k k_k| and whether the norm is at its floor, where kappa is proportional to k."""
    moved = k * k_k
    norm = tl.sqrt(tl.sum(moved * moved, axis=1))
    inverse = 1.0 / tl.maximum(norm, SMALLEST_NORM)
    return moved * inverse[:, None], inverse, norm <= SMALLEST_NORM


@triton.jit
def forward(
    w,
    k,
    a,
    v,
    v_first,
    share,
    w0,
    a0,
    v0,
    k_k,
    k_a,
    log_w,
    written,
    removed,
    added,
    mixed,
    rows,
    H,
    K: tl.constexpr,
    MIXES: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """Grid (cdiv(rows, BR) H,)."""
    tile, own, _block, place, inside, channel = head_tile(rows, H, K, BR, BK)
    decay = tl.sigmoid(numbers(w0 + own, channel, K) + take(w + tile, place, inside))
    put(log_w + tile, decay * FASTEST_LOG_DECAY, place, inside)
    key = take(k + tile, place, inside)
    rate = tl.sigmoid(numbers(a0 + own, channel, K) + take(a + tile, place, inside))
    kappa, _inverse, _floored = _key(key, numbers(k_k + own, channel, K))
    put(written + tile, key * (1.0 + (rate - 1.0) * numbers(k_a + own, channel, K)), place, inside)
    put(removed + tile, -kappa, place, inside)
    put(added + tile, kappa * rate, place, inside)
    if MIXES:
        value = take(v + tile, place, inside)
        part = tl.sigmoid(numbers(v0 + own, channel, K) + take(share + tile, place, inside))
        put(mixed + tile, value + (take(v_first + tile, place, inside) - value) * part, place, inside)


@triton.jit
def backward(
    w,
    k,
    a,
    v,
    v_first,
    share,
    w0,
    a0,
    v0,
    k_k,
    k_a,
    dlog_w,
    dwritten,
    dremoved,
    dadded,
    dmixed,
    dw,
    dk,
    da,
    dv,
    dv_first,
    dshare,
    partials,
    rows,
    H,
    K: tl.constexpr,
    MIXES: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """Gradients of the inputs, and sums over the tile for w0, a0, v0, k_k, k_a: partials [blocks, 5, H K]."""
    tile, own, block, place, inside, channel = head_tile(rows, H, K, BR, BK)
    width = H * K
    sums = partials + block * 5 * width + own

    decay = tl.sigmoid(numbers(w0 + own, channel, K) + take(w + tile, place, inside))
    on_decay = take(dlog_w + tile, place, inside) * FASTEST_LOG_DECAY * decay * (1.0 - decay)
    put(dw + tile, on_decay, place, inside)
    put_sum(sums, on_decay, channel, K)

    if MIXES:
        on_value = take(dmixed + tile, place, inside)
        part = tl.sigmoid(numbers(v0 + own, channel, K) + take(share + tile, place, inside))
        gap = take(v_first + tile, place, inside) - take(v + tile, place, inside)
        put(dv + tile, on_value * (1.0 - part), place, inside)
        put(dv_first + tile, on_value * part, place, inside)
        on_share = on_value * gap * part * (1.0 - part)
        put(dshare + tile, on_share, place, inside)
        put_sum(sums + 2 * width, on_share, channel, K)

    key = take(k + tile, place, inside)
    rate = tl.sigmoid(numbers(a0 + own, channel, K) + take(a + tile, place, inside))
    removal, strength = numbers(k_k + own, channel, K), numbers(k_a + own, channel, K)
    kappa, inverse, floored = _key(key, removal)
    on_written, on_added = take(dwritten + tile, place, inside), take(dadded + tile, place, inside)
    on_rate = (on_added * kappa + on_written * key * strength) * rate * (1.0 - rate)
    put(da + tile, on_rate, place, inside)
    put_sum(sums + width, on_rate, channel, K)
    put_sum(sums + 4 * width, on_written * key * (rate - 1.0), channel, K)

    on_kappa = on_added * rate - take(dremoved + tile, place, inside)
    along = tl.where(floored, 0.0, tl.sum(on_kappa * kappa, axis=1))
    on_moved = (on_kappa - kappa * along[:, None]) * inverse[:, None]
    put(dk + tile, on_written * (1.0 + (rate - 1.0) * strength) + on_moved * removal, place, inside)
    put_sum(sums + 3 * width, on_moved * key, channel, K)
