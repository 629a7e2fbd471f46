"""RWKV-7's recurrence as Triton kernels: the mathematics of ``chunked.py``, one program for each head.

A program holds the state of one head of one row in registers and goes through the row chunk by chunk: the
state is read from memory once and written once, the inputs are read once. What does not depend on the state,
the inverse M = (I - tril(a~ b~^T, -1))^-1 of each chunk, `solve` computes before, for all chunks at once. M
is found row by row: it is an alternating sum of powers of the matrix, which can be a million times larger.

Where heads are few, stretches of a row are gone through at once. What a stretch makes of the state S before
it is A S + C: from no state it gives C, and from the identity, where tokens have no values, A. With these
`compose` finds the states before all of them, and a third pass y. That is some twice the work in a fraction
of the time: a chain of chunks is as long as a stretch.

For the backward pass (``backward_kernels.py``) the forward pass keeps M and, every `SPAN` chunks, the state.

Where decays are stronger than any that the model can produce, a chunk has to go token by token: `solve` says
so by an M of zeros, whose first number is 1 otherwise. All chunks of its span then do, so that the loop over
other spans' chunks decides nothing, and Triton lets it read ahead.

Names: r, log_w, k, a, b are [B, T, H, K], v and y [B, T, H, V], states [B, H, .., K, V], all contiguous.
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

__all__ = [
    "advance",
    "advance_by_tokens",
    "compose",
    "decays",
    "forward",
    "goes_by_tokens",
    "solve",
    "step",
]

# The model's log_w is above -0.6065. Far below that products of decays leave float32, and rounding swamps
# the gradient of log_w, which is of the order of the decay itself.
STRONGEST: tl.constexpr = tl.constexpr(-5.0)


@triton.jit
def decays(log_w, token, C: tl.constexpr):
    """Sums of a chunk's log_w: [C, K] from its middle up to each token, [K] up to its middle, and of all."""
    middle = tl.sum(tl.where(token[:, None] < C // 2, log_w, 0.0), axis=0)
    return tl.cumsum(log_w, axis=0) - middle[None, :], middle, tl.sum(log_w, axis=0)


@triton.jit
def goes_by_tokens(inverses, chunk, end, C: tl.constexpr, SPAN: tl.constexpr):
    """Whether one of the chunks up to `end`, at most SPAN, has to go token by token."""
    strong = False
    for i in tl.static_range(SPAN):
        if chunk + i < end:
            strong |= tl.load(inverses + (chunk + i) * C * C) == 0.0
    return strong


@triton.jit
def solve(
    log_w,
    a,
    b,
    starts,
    inverses,
    T,
    H,
    K: tl.constexpr,
    BK: tl.constexpr,
    C: tl.constexpr,
    STARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """M [B, H, n, C, C] of all n chunks, 0 of those that have to go token by token; grid (B H n,)."""
    n = tl.cdiv(T, C)
    chunk, head = tl.program_id(0) % n, (tl.program_id(0) // n).to(tl.int64)
    first = (head // H * T * H + head % H) * K
    stride = H * K
    token, channel = tl.arange(0, C), tl.arange(0, BK)
    start = chunk * C
    begun = documents(starts + head // H * T, start, T, token, STARTS)
    lw = load_tile(log_w + first, start, T, stride, K, token, channel)
    strong = tl.min(tl.min(lw, axis=1), axis=0) < STRONGEST
    # Its decays would overflow.
    lw = tl.where(strong, 0.0, lw)
    total, _, _ = decays(lw, token, C)
    reader = load_tile(a + first, start, T, stride, K, token, channel) * tl.exp(total - lw)
    writer = load_tile(b + first, start, T, stride, K, token, channel) * tl.exp(-total)
    scores = below(product(reader, tl.trans(writer), PRECISION), begun, token, False)
    # Row i of M is row i of I, and the rows before it as the scores weigh them.
    inverse = tl.where(token[:, None] == token[None, :], 1.0, 0.0)
    for i in range(1, C):
        weights = tl.sum(tl.where(token[:, None] == i, scores, 0.0), axis=0)
        found = tl.sum(weights[:, None] * inverse, axis=0)
        inverse += tl.where(token[:, None] == i, found[None, :], 0.0)
    inverse = tl.where(strong, 0.0, inverse)
    at = inverses + tl.program_id(0).to(tl.int64) * C * C
    tl.store(at + token[:, None] * C + token[None, :], inverse)


@triton.jit
def step(
    S, r, log_w, k, v, a, b, starts, i, stride, K, V, value_stride, channel, value,
    STARTS: tl.constexpr, LEARNS: tl.constexpr,
):  # fmt: skip
    """The state after token i, and y of it; where not LEARNS, of a token without a value."""
    if STARTS:
        S *= 1.0 - tl.load(starts + i).to(tl.float32)
    found = tl.sum(load_row(a, i, stride, K, channel)[:, None] * S, axis=0)
    decay = tl.exp(load_row(log_w, i, stride, K, channel))
    S = decay[:, None] * S + load_row(b, i, stride, K, channel)[:, None] * found[None, :]
    if LEARNS:
        row_v = load_row(v, i, value_stride, V, value)
        S += load_row(k, i, stride, K, channel)[:, None] * row_v[None, :]
    return S, tl.sum(load_row(r, i, stride, K, channel)[:, None] * S, axis=0)


@triton.jit
def advance_by_tokens(
    S, r, log_w, k, v, a, b, starts, y, start, end, stride, K, V, value_stride, channel, value,
    STARTS: tl.constexpr, OUTPUT: tl.constexpr, LEARNS: tl.constexpr,
):  # fmt: skip
    """The state after tokens start to end - 1; where OUTPUT, their y is written."""
    for i in range(start, end):
        S, found = step(
            S, r, log_w, k, v, a, b, starts, i, stride, K, V, value_stride, channel, value, STARTS, LEARNS
        )
        if OUTPUT:
            store_row(y, found.to(y.dtype.element_ty), i, value_stride, V, value)
    return S


@triton.jit
def advance(
    S, r, log_w, k, v, a, b, starts, inverse, y, start, T, stride, K, V, value_stride, token, channel, value,
    C: tl.constexpr, STARTS: tl.constexpr, OUTPUT: tl.constexpr, LEARNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The state after a chunk; where OUTPUT, its y is written. Where not LEARNS, tokens have no values."""
    lw = load_tile(log_w, start, T, stride, K, token, channel)
    b_in = load_tile(b, start, T, stride, K, token, channel)
    a_out = load_tile(a, start, T, stride, K, token, channel)
    M = tl.load(inverse + token[:, None] * C + token[None, :])
    begun = documents(starts, start, T, token, STARTS)
    sees, reaches, last = horizon(begun)
    total, middle, whole = decays(lw, token, C)
    undo = tl.exp(-total)
    b_in *= undo
    a_out *= tl.exp(total - lw)
    S *= tl.exp(middle)[:, None]
    Z = product(tl.where(sees, a_out, 0.0), S, PRECISION)
    if LEARNS:
        k_in = load_tile(k, start, T, stride, K, token, channel) * undo
        values = load_tile(v, start, T, value_stride, V, token, value)
        ak = below(product(a_out, tl.trans(k_in), PRECISION), begun, token, False)
        Z += product(ak, values, PRECISION)
    U = product(M, Z, PRECISION)
    if OUTPUT:
        r_out = load_tile(r, start, T, stride, K, token, channel) * tl.exp(total)
        rk = below(product(r_out, tl.trans(k_in), PRECISION), begun, token, True)
        rb = below(product(r_out, tl.trans(b_in), PRECISION), begun, token, True)
        Y = product(rk, values, PRECISION) + product(rb, U, PRECISION)
        Y += product(tl.where(sees, r_out, 0.0), S, PRECISION)
        store_tile(y, Y.to(y.dtype.element_ty), start, T, value_stride, V, token, value)
    S = tl.where(last == 0, S, 0.0)
    if LEARNS:
        S += product(tl.trans(tl.where(reaches, k_in, 0.0)), values, PRECISION)
    S += product(tl.trans(tl.where(reaches, b_in, 0.0)), U, PRECISION)
    S *= tl.exp(whole - middle)[:, None]
    return S


@triton.jit
def forward(
    r, log_w, k, v, a, b, before, starts, inverses, y, after, states, T, H, STRETCH,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, SPAN: tl.constexpr,
    KEEP: tl.constexpr, OUTPUT: tl.constexpr, LEARNS: tl.constexpr, STARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The state `after` each stretch of STRETCH spans, from that `before` it; where OUTPUT y, too.

    Where KEEP, the state before each span as well. Grid (B H, blocks of V, stretches); before and after are
    [B, H, stretches, K, V] and may be one: a program reads its part before it writes it.
    """
    head, stretch = tl.program_id(0).to(tl.int64), tl.program_id(2)
    own = head * tl.num_programs(2) + stretch
    at = head // H * T * H + head % H
    r, log_w, k, a, b = r + at * K, log_w + at * K, k + at * K, a + at * K, b + at * K
    v, y = v + at * V, y + at * V
    starts += head // H * T
    token, channel = tl.arange(0, C), tl.arange(0, BK)
    value = tl.program_id(1) * BV + tl.arange(0, BV)
    chunks = tl.cdiv(T, C)
    inverses += head * chunks * C * C
    spans = tl.cdiv(chunks, SPAN)
    S = load_state(before + own * K * V, channel, value, K, V)
    for span in range(stretch * STRETCH, tl.minimum(stretch * STRETCH + STRETCH, spans)):
        first, end = span * SPAN, tl.minimum(span * SPAN + SPAN, chunks)
        if KEEP:
            store_state(states + (head * spans + span) * K * V, S, channel, value, K, V)
        if goes_by_tokens(inverses, first, end, C, SPAN):
            S = advance_by_tokens(
                S, r, log_w, k, v, a, b, starts, y, first * C, tl.minimum(end * C, T), H * K, K, V, H * V,
                channel, value, STARTS, OUTPUT, LEARNS,
            )  # fmt: skip
        else:
            for chunk in range(first, end):
                S = advance(
                    S, r, log_w, k, v, a, b, starts, inverses + chunk * C * C, y, chunk * C, T,
                    H * K, K, V, H * V, token, channel, value, C, STARTS, OUTPUT, LEARNS, PRECISION,
                )  # fmt: skip
    store_state(after + own * K * V, S, channel, value, K, V)


@triton.jit
def compose(
    passed, learned, before, befores, after, STRETCHES,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The states before each stretch of a row, from what each makes of the state before it.

    S' = passed S + learned; passed [B, H, STRETCHES, K, K], learned and befores [B, H, STRETCHES, K, V],
    before and after [B, H, K, V]; grid (B H, blocks of V).
    """
    head = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BK)
    value = tl.program_id(1) * BV + tl.arange(0, BV)
    S = load_state(before + head * K * V, channel, value, K, V)
    for stretch in range(STRETCHES):
        at = head * STRETCHES + stretch
        store_state(befores + at * K * V, S, channel, value, K, V)
        A = load_state(passed + at * K * K, channel, channel, K, K)
        S = product(A, S, "tf32x3") + load_state(learned + at * K * V, channel, value, K, V)
    store_state(after + head * K * V, S, channel, value, K, V)
