"""RWKV-6's recurrence as Triton kernels: the mathematics of ``chunked.py``, one program for each head.

A program holds the state of one head of one row in registers and goes through the row chunk by chunk: the
state is read from memory once and written once, the inputs are read once. For the backward pass the forward
pass keeps the state every `SPAN` chunks. `backward` takes the spans in reverse: in each it first goes forward
from the kept state and puts the states before its chunks into a scratch memory that stays in the cache, and
then goes backward over the chunks.

Decays are of any strength. A pair of tokens in a chunk meets at the middle of the smallest block of a halving
of the chunk that holds both: at each level of the halving a token either reads, being in the second half of
its block, or is read, being in the first. So a level has one tile, receptances in second halves and keys in
first halves, decayed from or to the middle. Its product with itself has the level's scores, and the product
with the gradient of the scores, made symmetric, has the gradients of both. Exponents are sums of log_w of one
sign: nothing overflows, and nothing small is the difference of what is large. In the gradient of log_w
as well every term passes through the decays that it is the gradient of.

Names: r, log_w, k are [B, T, H, K], v and y [B, T, H, V], u [H, K], states [B, H, .., K, V], all contiguous.
FIXED: log_w is [H, K], the same for every token (RWKV-5). AFTER: a token reads the state after it was
written, without a bonus (GLA); u and du are not touched.
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from rookery.ops.tiles import (
    below,
    documents,
    horizon,
    load_row,
    load_state,
    load_tile,
    product,
    store_state,
    store_tile,
)

__all__ = ["backward", "forward"]


@triton.jit
def _parts(x):
    """Two tiles whose sum is x: the digits that TF32 has, and what they leave."""
    high = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def _sums(where, high, low):
    """For each token the sum of x, in `_parts`, over the tokens `where` its row says; to 22 binary digits."""
    ones = tl.where(where, 1.0, 0.0)
    return product(ones, high, "tf32") + product(ones, low, "tf32")


@triton.jit
def _between(token, HALF: tl.constexpr):
    """[C, C]: whether the column's token lies between the row's and the middle of the block of the row's."""
    middle = (token // (2 * HALF) * (2 * HALF) + HALF)[:, None]
    i, j = token[:, None], token[None, :]
    return ((j > i) & (j < middle)) | ((j >= middle) & (j < i))


@triton.jit
def _meets(token, HALF: tl.constexpr):
    """[C, C]: whether two tokens are in different halves of one block."""
    i, j = token[:, None] // HALF, token[None, :] // HALF
    return (i // 2 == j // 2) & (i != j)


@triton.jit
def _second(token, HALF: tl.constexpr):
    """[C, 1]: whether a token is in the second half of its block."""
    return (token // HALF % 2 == 1)[:, None]


@triton.jit
def _level(readers, writers, high, low, token, HALF: tl.constexpr):
    """The tile of a level of the halving, and the decays in it."""
    x = tl.where(_second(token, HALF), readers, writers)
    # Between neighbours there are no tokens.
    if HALF == 1:
        factor = tl.full(x.shape, 1.0, tl.float32)
    else:
        factor = tl.exp(_sums(_between(token, HALF), high, low))
    return x * factor, factor


@triton.jit
def _learn(S, keys, values, lw, high, low, begun, token, PRECISION: tl.constexpr):
    """The state after a chunk."""
    last = tl.max(begun, axis=0)
    onward = tl.exp(_sums(token[None, :] > token[:, None], high, low))
    written = tl.where((begun == last)[:, None], keys * onward, 0.0)
    S *= tl.where(last == 0, tl.exp(tl.sum(lw, axis=0)), 0.0)[:, None]
    return S + product(tl.trans(written), values, PRECISION)


@triton.jit
def forward(
    r,
    log_w,
    k,
    v,
    u,
    before,
    starts,
    y,
    after,
    states,
    T,
    H,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    SPAN: tl.constexpr,
    KEEP: tl.constexpr,
    STARTS: tl.constexpr,
    FIXED: tl.constexpr,
    AFTER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y, the state `after` the row and, where KEEP, the state before each span; grid (B H, blocks of V)."""
    head = tl.program_id(0).to(tl.int64)
    keys = (head // H * T * H + head % H) * K
    numbers = (head // H * T * H + head % H) * V
    decays = head % H * K if FIXED else keys
    decay_stride = 0 if FIXED else H * K
    starts += head // H * T
    token, channel = tl.arange(0, C), tl.arange(0, BK)
    value = tl.program_id(1) * BV + tl.arange(0, BV)
    chunks = tl.cdiv(T, C)
    spans = tl.cdiv(chunks, SPAN)
    S = load_state(before + head * K * V, channel, value, K, V)
    bonus = tl.full((BK,), 1.0, tl.float32) if AFTER else load_row(u, head % H, K, K, channel)
    for chunk in range(chunks):
        if KEEP:
            if chunk % SPAN == 0:
                store_state(states + (head * spans + chunk // SPAN) * K * V, S, channel, value, K, V)
        start = chunk * C
        lw = load_tile(log_w + decays, start, T, decay_stride, K, token, channel)
        row_k = load_tile(k + keys, start, T, H * K, K, token, channel)
        row_v = load_tile(v + numbers, start, T, H * V, V, token, value)
        row_r = load_tile(r + keys, start, T, H * K, K, token, channel)
        high, low = _parts(lw)
        begun = documents(starts, start, T, token, STARTS)
        own = tl.sum(row_r * bonus[None, :] * row_k, axis=1)
        if AFTER:
            row_r *= tl.exp(lw)
        scores = tl.zeros((C, C), tl.float32)
        for level in tl.static_range(LEVELS):
            x, _ = _level(row_r, row_k, high, low, token, C >> (level + 1))
            scores += tl.where(_meets(token, C >> (level + 1)), product(x, tl.trans(x), PRECISION), 0.0)
        scores = below(scores, begun, token, False)
        scores = tl.where(token[:, None] == token[None, :], own[:, None], scores)
        reads = row_r * tl.exp(_sums(token[None, :] < token[:, None], high, low))
        reads = tl.where((begun == 0)[:, None], reads, 0.0)
        Y = product(scores, row_v, PRECISION) + product(reads, S, PRECISION)
        store_tile(y + numbers, Y.to(y.dtype.element_ty), start, T, H * V, V, token, value)
        S = _learn(S, row_k, row_v, lw, high, low, begun, token, PRECISION)
    store_state(after + head * K * V, S, channel, value, K, V)


@triton.jit
def _back(
    S,
    dS,
    dbonus,
    ddecay,
    bonus,
    r,
    log_w,
    k,
    v,
    starts,
    dy,
    dr,
    dlog_w,
    dk,
    dv,
    start,
    T,
    stride,
    K,
    V,
    value_stride,
    decay_stride,
    token,
    channel,
    value,
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    STARTS: tl.constexpr,
    FIXED: tl.constexpr,
    AFTER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a chunk and of the state S before it; dS is that of the state after it."""
    lw = load_tile(log_w, start, T, decay_stride, K, token, channel)
    row_r = load_tile(r, start, T, stride, K, token, channel)
    row_k = load_tile(k, start, T, stride, K, token, channel)
    row_v = load_tile(v, start, T, value_stride, V, token, value)
    dY = load_tile(dy, start, T, value_stride, V, token, value)
    high, low = _parts(lw)
    begun = documents(starts, start, T, token, STARTS)
    sees, reaches, last = horizon(begun)
    # The present token, whose score is own, reads itself by the bonus.
    own = tl.sum(row_r * bonus[None, :] * row_k, axis=1)
    down = tl.sum(dY * row_v, axis=1)[:, None]
    dr_own, dk_own = down * bonus[None, :] * row_k, down * bonus[None, :] * row_r
    dbonus += tl.sum(down * row_r * row_k, axis=0)
    if AFTER:
        row_r *= tl.exp(lw)

    to = tl.exp(_sums(token[None, :] < token[:, None], high, low))
    dreads = tl.where(sees, product(dY, tl.trans(S), PRECISION) * to, 0.0)
    # A read of the state passes through the decays before it, what is kept of a token through those after it.
    dlw = product(tl.where(token[None, :] > token[:, None], 1.0, 0.0), dreads * row_r, PRECISION)
    onward = tl.exp(_sums(token[None, :] > token[:, None], high, low))
    dwritten = tl.where(reaches, product(row_v, tl.trans(dS), PRECISION) * onward, 0.0)
    dlw += product(tl.where(token[None, :] < token[:, None], 1.0, 0.0), dwritten * row_k, PRECISION)
    through = tl.where(last == 0, tl.exp(tl.sum(lw, axis=0)), 0.0)[:, None]
    dlw += tl.sum(S * dS * through, axis=1)[None, :]

    dscores = below(product(dY, tl.trans(row_v), PRECISION), begun, token, False)
    dscores += tl.trans(dscores)
    scores = tl.zeros((C, C), tl.float32)
    for level in tl.static_range(LEVELS):
        x, factor = _level(row_r, row_k, high, low, token, C >> (level + 1))
        meets = _meets(token, C >> (level + 1))
        scores += tl.where(meets, product(x, tl.trans(x), PRECISION), 0.0)
        dx = product(tl.where(meets, dscores, 0.0), x, PRECISION)
        dreads += tl.where(_second(token, C >> (level + 1)), dx * factor, 0.0)
        dwritten += tl.where(_second(token, C >> (level + 1)), 0.0, dx * factor)
        if level + 1 < LEVELS:
            spans = tl.trans(tl.where(_between(token, C >> (level + 1)), 1.0, 0.0))
            dlw += product(spans, dx * x, PRECISION)
    if AFTER:
        dlw += dreads * row_r
        dreads *= tl.exp(lw)
    store_tile(dr, (dreads + dr_own).to(dr.dtype.element_ty), start, T, stride, K, token, channel)
    store_tile(dk, (dwritten + dk_own).to(dk.dtype.element_ty), start, T, stride, K, token, channel)
    if FIXED:
        ddecay += tl.sum(tl.where((start + token < T)[:, None], dlw, 0.0), axis=0)
    else:
        store_tile(dlog_w, dlw.to(dlog_w.dtype.element_ty), start, T, stride, K, token, channel)

    scores = below(scores, begun, token, False)
    scores = tl.where(token[:, None] == token[None, :], own[:, None], scores)
    dV = product(tl.trans(scores), dY, PRECISION)
    dV += product(tl.where(reaches, row_k * onward, 0.0), dS, PRECISION)
    store_tile(dv, dV.to(dv.dtype.element_ty), start, T, value_stride, V, token, value)
    reads = tl.where(sees, row_r * to, 0.0)
    dS = through * dS + product(tl.trans(reads), dY, PRECISION)
    return dS, dbonus, ddecay


@triton.jit
def backward(
    r,
    log_w,
    k,
    v,
    u,
    starts,
    states,
    dy,
    dafter,
    dr,
    dlog_w,
    dk,
    dv,
    du,
    dbefore,
    scratch,
    T,
    H,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    SPAN: tl.constexpr,
    STARTS: tl.constexpr,
    FIXED: tl.constexpr,
    AFTER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of all inputs, from the states that `forward` kept; grid (B H,).

    du, and where FIXED dlog_w, are [B, H, K] float32: those of each row. scratch: [B H, SPAN, K, V] float32,
    of this kernel's own.
    """
    head = tl.program_id(0).to(tl.int64)
    keys = (head // H * T * H + head % H) * K
    numbers = (head // H * T * H + head % H) * V
    decays = head % H * K if FIXED else keys
    decay_stride = 0 if FIXED else H * K
    starts += head // H * T
    scratch += head * SPAN * K * V
    token, channel, value = tl.arange(0, C), tl.arange(0, BK), tl.arange(0, BV)
    chunks = tl.cdiv(T, C)
    spans = tl.cdiv(chunks, SPAN)
    dS = load_state(dafter + head * K * V, channel, value, K, V)
    bonus = tl.full((BK,), 1.0, tl.float32) if AFTER else load_row(u, head % H, K, K, channel)
    dbonus, ddecay = tl.zeros((BK,), tl.float32), tl.zeros((BK,), tl.float32)
    for back_span in range(spans):
        span = spans - 1 - back_span
        first, end = span * SPAN, tl.minimum(span * SPAN + SPAN, chunks)
        S = load_state(states + (head * spans + span) * K * V, channel, value, K, V)
        for chunk in range(first, end - 1):
            store_state(scratch + (chunk - first) * K * V, S, channel, value, K, V)
            start = chunk * C
            lw = load_tile(log_w + decays, start, T, decay_stride, K, token, channel)
            row_k = load_tile(k + keys, start, T, H * K, K, token, channel)
            row_v = load_tile(v + numbers, start, T, H * V, V, token, value)
            high, low = _parts(lw)
            begun = documents(starts, start, T, token, STARTS)
            S = _learn(S, row_k, row_v, lw, high, low, begun, token, PRECISION)
        # Threads read what others have written.
        tl.debug_barrier()
        for back in range(first, end):
            chunk = first + end - 1 - back
            if back > first:
                S = load_state(scratch + (chunk - first) * K * V, channel, value, K, V)
            dS, dbonus, ddecay = _back(
                S,
                dS,
                dbonus,
                ddecay,
                bonus,
                r + keys,
                log_w + decays,
                k + keys,
                v + numbers,
                starts,
                dy + numbers,
                dr + keys,
                dlog_w + decays,
                dk + keys,
                dv + numbers,
                chunk * C,
                T,
                H * K,
                K,
                V,
                H * V,
                decay_stride,
                token,
                channel,
                value,
                C,
                LEVELS,
                STARTS,
                FIXED,
                AFTER,
                PRECISION,
            )
        tl.debug_barrier()
    store_state(dbefore + head * K * V, dS, channel, value, K, V)
    inside = channel < K
    if not AFTER:
        tl.store(du + head * K + channel, dbonus, mask=inside)
    if FIXED:
        tl.store(dlog_w + head * K + channel, ddecay, mask=inside)
