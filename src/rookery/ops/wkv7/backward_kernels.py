"""The backward pass of RWKV-7's recurrence as Triton kernels; names and layouts are those of ``kernels.py``.

It takes the spans of a row in reverse. In each it first goes forward from the state that the forward pass
kept and puts the states before its chunks into a scratch memory that stays in the cache, and then goes
backward over the chunks. A span that went token by token does so here, forming every token's state anew from
that of its chunk.

Where heads are few, stretches of a row are gone through at once. What each of them begins with, the gradient
of the state after it, `retreat` finds before: the gradient of a state alone is a fifth of the instructions,
and its columns do not depend on each other, so that programs share the value channels of a head.

Where BONUS, the gradients of r, k and v get what RWKV-7's bonus, (r . (k r_k)) v, adds to them: the first two
from its own gradient, a number for each token, and v's as it is given. So they are written once.
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
    store_row,
    store_state,
    store_tile,
)
from rookery.ops.wkv7.kernels import advance, advance_by_tokens, decays, goes_by_tokens, step

__all__ = ["backward", "retreat"]


@triton.jit
def _reads(dS, dY, r_out, b_in, b_on, M, begun, token, PRECISION: tl.constexpr):
    """dZ: the gradient of what a reads from the state, and from the values that k writes, [C, V]."""
    rb = below(product(r_out, tl.trans(b_in), PRECISION), begun, token, True)
    dU = product(tl.trans(rb), dY, PRECISION) + product(b_on, dS, PRECISION)
    return product(tl.trans(M), dU, PRECISION)


@triton.jit
def _state_before(dS, dY, dZ, r_out, a_out, sees, last, PRECISION: tl.constexpr):
    """The gradient of the state before a chunk, both states decayed to its middle."""
    dS = tl.where(last == 0, dS, 0.0)
    dS += product(tl.trans(tl.where(sees, r_out, 0.0)), dY, PRECISION)
    dS += product(tl.trans(tl.where(sees, a_out, 0.0)), dZ, PRECISION)
    return dS


@triton.jit
def _back_by_tokens(
    before, dS, r, log_w, k, v, a, b, starts, dy, bonus, r_k, dv_given, dr, dlog_w, dk, dv, da, db, start,
    end, stride, H, K, V, value_stride, channel, value, STARTS: tl.constexpr, BONUS: tl.constexpr,
):  # fmt: skip
    """Gradients of tokens start to end - 1, and of the state `before` them; dS is that of the state after."""
    kind = dr.dtype.element_ty
    for back in range(start, end):
        i = start + end - 1 - back
        S = before
        for j in range(start, i):
            S, _ = step(
                S, r, log_w, k, v, a, b, starts, j, stride, K, V, value_stride, channel, value, STARTS, True
            )
        goes_on = 1.0
        if STARTS:
            goes_on = 1.0 - tl.load(starts + i).to(tl.float32)
        S *= goes_on
        decay = tl.exp(load_row(log_w, i, stride, K, channel))
        row_k, row_v = load_row(k, i, stride, K, channel), load_row(v, i, value_stride, V, value)
        row_a, row_b = load_row(a, i, stride, K, channel), load_row(b, i, stride, K, channel)
        row_dy = load_row(dy, i, value_stride, V, value)
        row_r = load_row(r, i, stride, K, channel)
        found = tl.sum(row_a[:, None] * S, axis=0)
        written = decay[:, None] * S + row_b[:, None] * found[None, :] + row_k[:, None] * row_v[None, :]
        dS += row_r[:, None] * row_dy[None, :]
        dfound = tl.sum(dS * row_b[:, None], axis=0)
        row_dr, row_dk = tl.sum(written * row_dy[None, :], axis=1), tl.sum(dS * row_v[None, :], axis=1)
        row_dv = tl.sum(dS * row_k[:, None], axis=0)
        if BONUS:
            share = tl.load(bonus + i * H) * tl.load(r_k + channel, mask=channel < K, other=0.0).to(
                tl.float32
            )
            row_dr += share * row_k
            row_dk += share * row_r
            row_dv += load_row(dv_given, i, value_stride, V, value)
        store_row(dr, row_dr.to(kind), i, stride, K, channel)
        store_row(dv, row_dv.to(dv.dtype.element_ty), i, value_stride, V, value)
        store_row(dk, row_dk.to(dk.dtype.element_ty), i, stride, K, channel)
        store_row(db, tl.sum(dS * found[None, :], axis=1).to(db.dtype.element_ty), i, stride, K, channel)
        store_row(da, tl.sum(S * dfound[None, :], axis=1).to(da.dtype.element_ty), i, stride, K, channel)
        dw = decay * tl.sum(dS * S, axis=1)
        store_row(dlog_w, dw.to(dlog_w.dtype.element_ty), i, stride, K, channel)
        dS = (decay[:, None] * dS + row_a[:, None] * dfound[None, :]) * goes_on
    return dS


@triton.jit
def _back(
    S, dS, dend, r, log_w, k, v, a, b, starts, inverse, dy, bonus, r_k, dv_given, dr, dlog_w, dk, dv, da, db,
    start, T, stride, H, K, V, value_stride, token, channel, value, C: tl.constexpr, STARTS: tl.constexpr,
    BONUS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a chunk and of the state S before it; dS is that of the state after it.

    dend [K] is the sum over V of dS times that state: by logarithm, the gradient of the chunk's last decay,
    and a part of that of each before it. The same of the state before is returned, for the chunk before.
    """
    lw = load_tile(log_w, start, T, stride, K, token, channel)
    r_out = load_tile(r, start, T, stride, K, token, channel)
    k_in = load_tile(k, start, T, stride, K, token, channel)
    a_out = load_tile(a, start, T, stride, K, token, channel)
    b_in = load_tile(b, start, T, stride, K, token, channel)
    values = load_tile(v, start, T, value_stride, V, token, value)
    dY = load_tile(dy, start, T, value_stride, V, token, value)
    M = tl.load(inverse + token[:, None] * C + token[None, :])
    begun = documents(starts, start, T, token, STARTS)
    sees, reaches, last = horizon(begun)
    total, middle, whole = decays(lw, token, C)
    onward, to, undo = tl.exp(total), tl.exp(total - lw), tl.exp(-total)
    r_out *= onward
    a_out *= to
    k_in *= undo
    b_in *= undo
    S *= tl.exp(middle)[:, None]

    ak = below(product(a_out, tl.trans(k_in), PRECISION), begun, token, False)
    Z = product(ak, values, PRECISION) + product(tl.where(sees, a_out, 0.0), S, PRECISION)
    U = product(M, Z, PRECISION)
    k_on, b_on = tl.where(reaches, k_in, 0.0), tl.where(reaches, b_in, 0.0)
    dS *= tl.exp(whole - middle)[:, None]

    rk = below(product(r_out, tl.trans(k_in), PRECISION), begun, token, True)
    dZ = _reads(dS, dY, r_out, b_in, b_on, M, begun, token, PRECISION)
    dV = product(tl.trans(rk), dY, PRECISION) + product(tl.trans(ak), dZ, PRECISION)
    dV += product(k_on, dS, PRECISION)
    share = tl.zeros([C, 1], tl.float32)
    if BONUS:
        dV += load_tile(dv_given, start, T, value_stride, V, token, value)
        share = tl.load(bonus + (start + token) * H, mask=start + token < T, other=0.0)[:, None]
        share = share * tl.load(r_k + channel, mask=channel < K, other=0.0).to(tl.float32)[None, :]
    store_tile(dv, dV.to(dv.dtype.element_ty), start, T, value_stride, V, token, value)

    drk = below(product(dY, tl.trans(values), PRECISION), begun, token, True)
    drb = below(product(dY, tl.trans(U), PRECISION), begun, token, True)
    dak = below(product(dZ, tl.trans(values), PRECISION), begun, token, False)
    dab = below(product(dZ, tl.trans(U), PRECISION), begun, token, False)

    turned = tl.trans(S)
    dr_out = tl.where(sees, product(dY, turned, PRECISION), 0.0)
    dr_out += product(drk, k_in, PRECISION) + product(drb, b_in, PRECISION)
    found = (dr_out + share * k_in) * onward if BONUS else dr_out * onward
    store_tile(dr, found.to(dr.dtype.element_ty), start, T, stride, K, token, channel)
    # Every row of r_out, a_out, k_in, b_in depends on the sum of log_w up to it, by logarithm.
    dtotal = dr_out * r_out
    da_out = tl.where(sees, product(dZ, turned, PRECISION), 0.0)
    da_out += product(dak, k_in, PRECISION) + product(dab, b_in, PRECISION)
    store_tile(da, (da_out * to).to(da.dtype.element_ty), start, T, stride, K, token, channel)
    dtotal_before = da_out * a_out
    turned = tl.trans(dS)
    dk_in = tl.where(reaches, product(values, turned, PRECISION), 0.0)
    dk_in += product(tl.trans(drk), r_out, PRECISION) + product(tl.trans(dak), a_out, PRECISION)
    found = (dk_in + share * r_out) * undo if BONUS else dk_in * undo
    store_tile(dk, found.to(dk.dtype.element_ty), start, T, stride, K, token, channel)
    dtotal -= dk_in * k_in
    db_in = tl.where(reaches, product(U, turned, PRECISION), 0.0)
    db_in += product(tl.trans(drb), r_out, PRECISION) + product(tl.trans(dab), a_out, PRECISION)
    store_tile(db, (db_in * undo).to(db.dtype.element_ty), start, T, stride, K, token, channel)
    dtotal -= db_in * b_in
    # a_out depends on the decays before its own token alone.
    dtotal += dtotal_before
    dlw = tl.cumsum(dtotal, axis=0, reverse=True) - dtotal_before + dend[None, :]
    # The state is new there: what the sums leave is rounding.
    if STARTS:
        at = start + token
        marks = tl.load(starts + at, mask=at < T, other=0)
        dlw = tl.where((marks != 0)[:, None], 0.0, dlw)
    store_tile(dlog_w, dlw.to(dlog_w.dtype.element_ty), start, T, stride, K, token, channel)

    dS = _state_before(dS, dY, dZ, r_out, a_out, sees, last, PRECISION)
    dend = tl.sum(dS * S, axis=1)
    dS *= tl.exp(middle)[:, None]
    return dS, dend


@triton.jit
def _retreat_by_tokens(
    dS, r, log_w, a, b, starts, dy, start, end, stride, K, V, value_stride, channel, value,
    STARTS: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before tokens start to end - 1; dS is that of the state after them."""
    for back in range(start, end):
        i = start + end - 1 - back
        dS += load_row(r, i, stride, K, channel)[:, None] * load_row(dy, i, value_stride, V, value)[None, :]
        dfound = tl.sum(dS * load_row(b, i, stride, K, channel)[:, None], axis=0)
        decay = tl.exp(load_row(log_w, i, stride, K, channel))
        dS = decay[:, None] * dS + load_row(a, i, stride, K, channel)[:, None] * dfound[None, :]
        if STARTS:
            dS *= 1.0 - tl.load(starts + i).to(tl.float32)
    return dS


@triton.jit
def _retreat(
    dS, r, log_w, a, b, starts, inverse, dy, start, T, stride, K, V, value_stride, token, channel, value,
    C: tl.constexpr, STARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before a chunk; dS is that of the state after it."""
    lw = load_tile(log_w, start, T, stride, K, token, channel)
    r_out = load_tile(r, start, T, stride, K, token, channel)
    a_out = load_tile(a, start, T, stride, K, token, channel)
    b_in = load_tile(b, start, T, stride, K, token, channel)
    dY = load_tile(dy, start, T, value_stride, V, token, value)
    M = tl.load(inverse + token[:, None] * C + token[None, :])
    begun = documents(starts, start, T, token, STARTS)
    sees, reaches, last = horizon(begun)
    total, middle, whole = decays(lw, token, C)
    r_out *= tl.exp(total)
    a_out *= tl.exp(total - lw)
    b_in *= tl.exp(-total)
    dS *= tl.exp(whole - middle)[:, None]
    dZ = _reads(dS, dY, r_out, b_in, tl.where(reaches, b_in, 0.0), M, begun, token, PRECISION)
    dS = _state_before(dS, dY, dZ, r_out, a_out, sees, last, PRECISION)
    return dS * tl.exp(middle)[:, None]


@triton.jit
def retreat(
    r, log_w, a, b, starts, inverses, dy, dafter, dafters, T, H, STRETCH,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, SPAN: tl.constexpr,
    STARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the state after each stretch of STRETCH spans; grid (B H, blocks of V).

    dafters: [B, H, stretches, K, V] float32, written.
    """
    head = tl.program_id(0).to(tl.int64)
    at = head // H * T * H + head % H
    r, log_w, a, b, dy = r + at * K, log_w + at * K, a + at * K, b + at * K, dy + at * V
    starts += head // H * T
    token, channel = tl.arange(0, C), tl.arange(0, BK)
    value = tl.program_id(1) * BV + tl.arange(0, BV)
    chunks = tl.cdiv(T, C)
    inverses += head * chunks * C * C
    spans = tl.cdiv(chunks, SPAN)
    stretches = tl.cdiv(spans, STRETCH)
    dafters += head * stretches * K * V
    dS = load_state(dafter + head * K * V, channel, value, K, V)
    store_state(dafters + (stretches - 1) * K * V, dS, channel, value, K, V)
    # The first stretch needs only the gradient of the state after it.
    for back_span in range(STRETCH, spans):
        span = STRETCH + spans - 1 - back_span
        first, end = span * SPAN, tl.minimum(span * SPAN + SPAN, chunks)
        if goes_by_tokens(inverses, first, end, C, SPAN):
            dS = _retreat_by_tokens(
                dS, r, log_w, a, b, starts, dy, first * C, tl.minimum(end * C, T), H * K, K, V, H * V,
                channel, value, STARTS,
            )  # fmt: skip
        else:
            for back in range(first, end):
                chunk = first + end - 1 - back
                dS = _retreat(
                    dS, r, log_w, a, b, starts, inverses + chunk * C * C, dy, chunk * C, T,
                    H * K, K, V, H * V, token, channel, value, C, STARTS, PRECISION,
                )  # fmt: skip
        if span % STRETCH == 0:
            store_state(dafters + (span // STRETCH - 1) * K * V, dS, channel, value, K, V)


@triton.jit
def backward(
    r, log_w, k, v, a, b, starts, inverses, states, after, dy, dafters, bonus, r_k, dv_given,
    dr, dlog_w, dk, dv, da, db, dbefore, scratch, T, H, STRETCH,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, SPAN: tl.constexpr,
    STARTS: tl.constexpr, BONUS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of all inputs, from the states that `forward` kept; grid (B H, stretches).

    bonus, r_k, dv_given: [B, T, H] float32, [H, K] and as v, where BONUS.
    dafters: [B, H, stretches, K, V] float32, the gradient of the state after each stretch of STRETCH spans.
    scratch: [B, H, stretches, SPAN, K, V] float32, of this kernel's own.
    """
    head, stretch = tl.program_id(0).to(tl.int64), tl.program_id(1)
    own = head * tl.num_programs(1) + stretch
    at = head // H * T * H + head % H
    r, log_w, k, a, b = r + at * K, log_w + at * K, k + at * K, a + at * K, b + at * K
    dr, dlog_w, dk, da, db = dr + at * K, dlog_w + at * K, dk + at * K, da + at * K, db + at * K
    v, dy, dv, dv_given = v + at * V, dy + at * V, dv + at * V, dv_given + at * V
    bonus, r_k = bonus + at, r_k + head % H * K
    starts += head // H * T
    scratch += own * SPAN * K * V
    token, channel, value = tl.arange(0, C), tl.arange(0, BK), tl.arange(0, BV)
    chunks = tl.cdiv(T, C)
    inverses += head * chunks * C * C
    spans = tl.cdiv(chunks, SPAN)
    first_span, end_span = stretch * STRETCH, tl.minimum(stretch * STRETCH + STRETCH, spans)
    following = after + head * K * V
    if end_span < spans:
        following = states + (head * spans + end_span) * K * V
    dS = load_state(dafters + own * K * V, channel, value, K, V)
    dend = tl.sum(dS * load_state(following, channel, value, K, V), axis=1)
    for back_span in range(first_span, end_span):
        span = first_span + end_span - 1 - back_span
        first, end = span * SPAN, tl.minimum(span * SPAN + SPAN, chunks)
        before = states + (head * spans + span) * K * V
        S = load_state(before, channel, value, K, V)
        if goes_by_tokens(inverses, first, end, C, SPAN):
            for chunk in range(first, end):
                store_state(scratch + (chunk - first) * K * V, S, channel, value, K, V)
                S = advance_by_tokens(
                    S, r, log_w, k, v, a, b, starts, dy, chunk * C, tl.minimum(chunk * C + C, T), H * K, K, V,
                    H * V, channel, value, STARTS, False, True,
                )  # fmt: skip
            # Threads read what others have written.
            tl.debug_barrier()
            for back in range(first, end):
                chunk = first + end - 1 - back
                S = load_state(scratch + (chunk - first) * K * V, channel, value, K, V)
                dS = _back_by_tokens(
                    S, dS, r, log_w, k, v, a, b, starts, dy, bonus, r_k, dv_given, dr, dlog_w, dk, dv, da, db,
                    chunk * C, tl.minimum(chunk * C + C, T), H * K, H, K, V, H * V, channel, value, STARTS,
                    BONUS,
                )  # fmt: skip
            dend = tl.sum(dS * load_state(before, channel, value, K, V), axis=1)
        else:
            for chunk in range(first, end - 1):
                store_state(scratch + (chunk - first) * K * V, S, channel, value, K, V)
                S = advance(
                    S, r, log_w, k, v, a, b, starts, inverses + chunk * C * C, dy, chunk * C, T,
                    H * K, K, V, H * V, token, channel, value, C, STARTS, False, True,
                    PRECISION,
                )  # fmt: skip
            tl.debug_barrier()
            for back in range(first, end):
                chunk = first + end - 1 - back
                if back > first:
                    S = load_state(scratch + (chunk - first) * K * V, channel, value, K, V)
                dS, dend = _back(
                    S, dS, dend, r, log_w, k, v, a, b, starts, inverses + chunk * C * C, dy, bonus, r_k,
                    dv_given, dr, dlog_w, dk, dv, da, db, chunk * C, T, H * K, H, K, V, H * V, token, channel,
                    value, C, STARTS, BONUS, PRECISION,
                )  # fmt: skip
        tl.debug_barrier()
    if stretch == 0:
        store_state(dbefore + head * K * V, dS, channel, value, K, V)
