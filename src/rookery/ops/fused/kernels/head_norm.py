"""The norm of each head, and the gate after it: a program computes some tokens of one head.

Names: inputs and the result [rows, H K], rows the tokens of all streams; vectors [H K].
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from rookery.ops.fused.kernels.parts import head_tile, normalise, numbers, put, put_sum, take

__all__ = ["backward", "forward"]


@triton.jit
def forward(
    y,
    g,
    weight,
    bias,
    result,
    rows,
    H,
    epsilon,
    K: tl.constexpr,
    GATE: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """(norm(y) weight + bias) silu(g); grid (cdiv(rows, BR) H,)."""
    tile, own, _block, place, inside, channel = head_tile(rows, H, K, BR, BK)
    normal, _inverse = normalise(take(y + tile, place, inside), inside, epsilon, K)
    found = normal * numbers(weight + own, channel, K) + numbers(bias + own, channel, K)
    if GATE:
        opening = take(g + tile, place, inside)
        found *= opening * tl.sigmoid(opening)
    put(result + tile, found, place, inside)


@triton.jit
def backward(
    y,
    g,
    weight,
    bias,
    dresult,
    dy,
    dg,
    partials,
    rows,
    H,
    epsilon,
    K: tl.constexpr,
    GATE: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """Gradients of the inputs, and sums over the tile for weight and bias: partials [blocks, 2, H K]."""
    tile, own, block, place, inside, channel = head_tile(rows, H, K, BR, BK)
    sums = partials + block * 2 * H * K + own
    normal, inverse = normalise(take(y + tile, place, inside), inside, epsilon, K)
    scale = numbers(weight + own, channel, K)
    on_found = take(dresult + tile, place, inside)
    if GATE:
        opening = take(g + tile, place, inside)
        share = tl.sigmoid(opening)
        found = normal * scale + numbers(bias + own, channel, K)
        put(dg + tile, on_found * found * share * (1.0 + opening * (1.0 - share)), place, inside)
        on_found *= opening * share
    put_sum(sums, on_found * normal, channel, K)
    put_sum(sums + H * K, on_found, channel, K)
    on_normal = on_found * scale
    mean = (tl.sum(on_normal, axis=1) / K)[:, None]
    along = (tl.sum(on_normal * normal, axis=1) / K)[:, None]
    put(dy + tile, (on_normal - mean - normal * along) * inverse[:, None], place, inside)
