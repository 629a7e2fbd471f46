"""RWKV-7's norm, bonus and gate: a program computes some tokens of one head.

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
    r,
    k,
    v,
    g,
    r_k,
    weight,
    bias,
    result,
    rows,
    H,
    epsilon,
    K: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """Grid (cdiv(rows, BR) H,)."""
    tile, own, _block, place, inside, channel = head_tile(rows, H, K, BR, BK)
    normal, _inverse = normalise(take(y + tile, place, inside), inside, epsilon, K)
    product = take(r + tile, place, inside) * take(k + tile, place, inside)
    bonus = tl.sum(product * numbers(r_k + own, channel, K), axis=1)
    found = normal * numbers(weight + own, channel, K) + numbers(bias + own, channel, K)
    found += bonus[:, None] * take(v + tile, place, inside)
    put(result + tile, found * take(g + tile, place, inside), place, inside)


@triton.jit
def backward(
    y,
    r,
    k,
    v,
    g,
    r_k,
    weight,
    bias,
    dresult,
    dy,
    dr,
    dk,
    dv,
    dg,
    partials,
    rows,
    H,
    epsilon,
    K: tl.constexpr,
    BONUS_ALONE: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """Gradients of the inputs, and sums over the tile for r_k, weight, bias: partials [blocks, 3, H K].

    BONUS_ALONE: in place of those of r and k, which follow from it, the gradient of r . (k r_k), [rows, H],
    is written to dr.
    """
    tile, own, block, place, inside, channel = head_tile(rows, H, K, BR, BK)
    width = H * K
    sums = partials + block * 3 * width + own

    on_result, gate = take(dresult + tile, place, inside), take(g + tile, place, inside)
    value = take(v + tile, place, inside)
    receptance, key = take(r + tile, place, inside), take(k + tile, place, inside)
    bonus_key = numbers(r_k + own, channel, K)
    bonus = tl.sum(receptance * key * bonus_key, axis=1)
    normal, inverse = normalise(take(y + tile, place, inside), inside, epsilon, K)
    scale = numbers(weight + own, channel, K)
    found = normal * scale + numbers(bias + own, channel, K) + bonus[:, None] * value
    put(dg + tile, on_result * found, place, inside)

    on_sum = on_result * gate
    put(dv + tile, on_sum * bonus[:, None], place, inside)
    on_bonus = tl.sum(on_sum * value, axis=1)[:, None]
    if BONUS_ALONE:
        head, row = tl.program_id(0) % H, tl.arange(0, BR)
        first = block * BR
        at = (first + row[:, None]) * H + head
        tl.store(dr + at, on_bonus, mask=first + row[:, None] < rows)
    else:
        put(dr + tile, on_bonus * key * bonus_key, place, inside)
        put(dk + tile, on_bonus * receptance * bonus_key, place, inside)
    put_sum(sums, on_bonus * receptance * key, channel, K)

    put_sum(sums + width, on_sum * normal, channel, K)
    put_sum(sums + 2 * width, on_sum, channel, K)
    on_normal = on_sum * scale
    mean = (tl.sum(on_normal, axis=1) / K)[:, None]
    along = (tl.sum(on_normal * normal, axis=1) / K)[:, None]
    put(dy + tile, (on_normal - mean - normal * along) * inverse[:, None], place, inside)
