"""The loss of a chunk of logits, and in their place their gradients, as a Triton kernel: one program a token.

A token's logits are read twice, the second time out of the cache, and their gradients written once.
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["cross_entropy"]

# Below every logit; minus infinity less itself would be no number.
LOWEST: tl.constexpr = tl.constexpr(-3e38)


@triton.jit
def cross_entropy(
    logits,
    targets,
    losses,
    N,
    brake,
    ignore_index,
    BLOCK: tl.constexpr,
    GRADIENT: tl.constexpr,
    BRAKE: tl.constexpr,
):
    """losses [tokens] in float32; where GRADIENT, `logits` [tokens, N] become gradients; grid (tokens,)."""
    token = tl.program_id(0).to(tl.int64)
    logits += token * N
    target = tl.load(targets + token)
    predicted = target != ignore_index
    of_target = tl.load(logits + tl.where(predicted, target, 0)).to(tl.float32)
    column = tl.arange(0, BLOCK)
    # In each place of a block, over all blocks: the largest logit, where it was, and the sum scaled by it.
    largest = tl.full([BLOCK], LOWEST, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    where = column
    for start in range(0, N, BLOCK):
        x = tl.load(logits + start + column, mask=start + column < N, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(largest, x)
        total = total * tl.exp(largest - larger) + tl.exp(x - larger)
        if BRAKE:
            where = tl.where(x > largest, start + column, where)
        largest = larger
    top = tl.max(largest, axis=0)
    total = tl.sum(total * tl.exp(largest - top), axis=0)
    tl.store(losses + token, tl.where(predicted, top + tl.log(total) - of_target, 0.0))
    if GRADIENT:
        # All warps have read the target's logit before one writes its gradient there.
        tl.debug_barrier()
        scale = tl.where(predicted, 1.0 / total, 0.0)
        taken = tl.where(predicted, target, -1)
        first = tl.min(tl.where(largest == top, where, N), axis=0)
        for start in range(0, N, BLOCK):
            at = start + column
            x = tl.load(logits + at, mask=at < N, other=-float("inf")).to(tl.float32)
            gradient = tl.exp(x - top) * scale - tl.where(at == taken, 1.0, 0.0)
            if BRAKE:
                gradient += tl.where(at == first, brake * top, 0.0)
            tl.store(logits + at, gradient.to(logits.dtype.element_ty), mask=at < N)
