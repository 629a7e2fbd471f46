"""RWKV-4's recurrence as Triton kernels: one lane for each channel, walking through time.

What it costs. B 8, T 4096, A 4096 in bfloat16 are 0.8 GB forward (k, v, y) and 1.3 GB backward: 0.3 and
0.5 ms at an H100's bandwidth. A second pass over k and v would cost two thirds more, so time is one walk
where channels alone fill the GPU. Those are 32768 lanes, 8 warps on each multiprocessor, far too few to hide
the 0.7 us that memory takes by taking turns: to keep 3 TB/s coming, each multiprocessor must have some 16 KB
under way. So a lane reads `TILE` tokens ahead, as a tuple of rows in registers: 8 warps of 32 lanes, 16
tokens of k and v. A token costs about 45 instructions, 0.2 ms for all on all multiprocessors, below what the
memory takes; the chain from one token to the next is short, since exponents do not depend on the sums.

Where lanes are few, time is cut into segments, whose lanes run beside each other (``chunked.py`` has the
mathematics): `sums` finds each segment's sums from nothing, `join` the state before each segment, and then
`forward` walks through all segments. Backward alike: `gradient_sums`, `gradient_join`, `backward`.

The largest exponent p is kept as two numbers: `top`, the key that it came in with, and `age`, the number of
decays since; p = top + age log_w. Both are exact, however many tokens pass, and differences of exponents are
rounded once. As a float, p would be rounded at each token, always the same way (``reference.py``).

For the backward pass the forward pass keeps the state before each tile, a quarter of the bytes of k and v in
bfloat16. `backward` takes the tiles in reverse: first forward from the state kept, and the states before all
its tokens stay in registers; then back.

Names: k, v, y are [B, T, A], states before tiles [B, tiles, 4, A] as (a, b, top, age), all contiguous. A row
of tokens has n segments of `length` tokens, whole tiles; the last may be shorter. Where WHOLE, it is not.
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["backward", "forward", "gradient_join", "gradient_sums", "join", "sums"]

# The largest exponent of no tokens.
NOTHING: tl.constexpr = tl.constexpr(-1e30)


@triton.jit
def _place(A, n, lanes, LANES: tl.constexpr):
    """Each lane's channel, segment of n, and row. Lanes behind the last do what the last does."""
    lane = tl.minimum(tl.program_id(0) * LANES + tl.arange(0, LANES), lanes - 1)
    return lane % A, lane // A % n, (lane // A // n).to(tl.int64)


@triton.jit
def _are_inside(lanes, LANES: tl.constexpr):
    """Which lanes have a place of their own: only they may touch what is updated in place.

    One behind the last, in a warp that comes later, would update anew what the last one has written.
    """
    return tl.program_id(0) * LANES + tl.arange(0, LANES) < lanes


@triton.jit
def _rows(pointer, token, end, stride, TILE: tl.constexpr, WHOLE: tl.constexpr):
    """The numbers of TILE tokens from `token` on, 0 from `end` on; `pointer` is at the first one."""
    rows = ()
    for i in tl.static_range(TILE):
        if WHOLE:
            row = tl.load(pointer + i * stride)
        else:
            row = tl.load(pointer + i * stride, mask=token + i < end, other=0)
        rows += (row,)
    return rows


@triton.jit
def _load_state(pointer, A, mask):
    return (
        tl.load(pointer, mask=mask),
        tl.load(pointer + A, mask=mask),
        tl.load(pointer + 2 * A, mask=mask),
        tl.load(pointer + 3 * A, mask=mask),
    )


@triton.jit
def _store_state(pointer, a, b, top, age, A, mask):
    tl.store(pointer, a, mask=mask)
    tl.store(pointer + A, b, mask=mask)
    tl.store(pointer + 2 * A, top, mask=mask)
    tl.store(pointer + 3 * A, age, mask=mask)


@triton.jit
def _factors(difference):
    """e^(p - m) and e^(q - m) of two exponents whose difference is p - q, and m the larger one."""
    smaller = tl.exp(-tl.abs(difference))
    first = difference > 0
    return tl.where(first, 1.0, smaller), tl.where(first, smaller, 1.0)


@triton.jit
def _fresh(a, b, top, age, flag):
    """The state, or that before any token where `flag` says that a document starts."""
    goes_on = flag == 0
    return (
        tl.where(goes_on, a, 0.0),
        tl.where(goes_on, b, 0.0),
        tl.where(goes_on, top, NOTHING),
        tl.where(goes_on, age, 0.0),
    )


@triton.jit
def _step(a, b, top, age, key, value, log_w):
    """The state after a token, how much of the one before is in it, and by how much its p is larger."""
    difference = tl.fma(age + 1.0, log_w, top - key)
    past, present = _factors(difference)
    stays = difference > 0
    return (
        past * a + present * value,
        past * b + present,
        tl.where(stays, top, key),
        tl.where(stays, age + 1.0, 0.0),
        past,
        difference,
    )


@triton.jit
def _output(a, b, difference, value):
    """y, the denominator, and the parts of the past and of the token; `difference` of p and u + key."""
    past, own = _factors(difference)
    denominator = past * b + own
    return (past * a + own * value) / denominator, denominator, past, own


@triton.jit
def sums(
    log_w,
    k,
    v,
    starts,
    spans,
    T,
    A,
    n,
    length,
    lanes,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    STARTS: tl.constexpr,
):
    """The sums over each segment but the last, at the place of the next one; lanes (B, n - 1, A)."""
    channel, segment, row = _place(A, n - 1, lanes, LANES)
    decay = tl.load(log_w + channel).to(tl.float32)
    token = row * T + segment * length
    k += token * A + channel
    v += token * A + channel
    starts += token
    a = tl.zeros([LANES], tl.float32)
    b, age = a, a
    top = a + NOTHING
    keys, values = _rows(k, 0, 0, A, TILE, True), _rows(v, 0, 0, A, TILE, True)
    for begin in range(0, length, TILE):
        ahead = tl.minimum(begin + TILE, length - TILE)
        next_keys = _rows(k + ahead * A, 0, 0, A, TILE, True)
        next_values = _rows(v + ahead * A, 0, 0, A, TILE, True)
        if STARTS:
            flags = _rows(starts + begin, 0, 0, 1, TILE, True)
        for i in tl.static_range(TILE):
            if STARTS:
                a, b, top, age = _fresh(a, b, top, age, flags[i])
            key, value = keys[i].to(tl.float32), values[i].to(tl.float32)
            a, b, top, age, _, _ = _step(a, b, top, age, key, value, decay)
        keys, values = next_keys, next_values
    _store_state(spans + ((row * n + segment + 1) * 4) * A + channel, a, b, top, age, A, None)


@triton.jit
def join(log_w, cut, spans, A, n, length, lanes, LANES: tl.constexpr, STARTS: tl.constexpr):
    """The states before segments, at the places of the sums of those before; lanes (B, A)."""
    channel, _, row = _place(A, 1, lanes, LANES)
    own = _are_inside(lanes, LANES)
    decay = tl.load(log_w + channel).to(tl.float32)
    spans += row * n * 4 * A + channel
    a, b, top, age = _load_state(spans, A, own)
    for segment in range(1, n):
        if STARTS:
            a, b, top, age = _fresh(a, b, top, age, tl.load(cut + row * n + segment - 1))
        new_a, new_b, new_top, new_age = _load_state(spans + segment * 4 * A, A, own)
        age += length
        difference = tl.fma(age - new_age, decay, top - new_top)
        past, present = _factors(difference)
        a = past * a + present * new_a
        b = past * b + present * new_b
        top = tl.where(difference > 0, top, new_top)
        age = tl.where(difference > 0, age, new_age)
        _store_state(spans + segment * 4 * A, a, b, top, age, A, own)


@triton.jit
def forward(
    log_w,
    u,
    k,
    v,
    starts,
    spans,
    y,
    after,
    ages,
    kept,
    T,
    A,
    n,
    length,
    lanes,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    KEEP: tl.constexpr,
    STARTS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """y, the state after the row; where KEEP, the states before tiles and the last age; lanes (B, n, A)."""
    channel, segment, row = _place(A, n, lanes, LANES)
    decay, bonus = tl.load(log_w + channel).to(tl.float32), tl.load(u + channel).to(tl.float32)
    first = segment * length
    end = tl.minimum(first + length, T)
    token = row * T + first
    k += token * A + channel
    v += token * A + channel
    y += token * A + channel
    starts += token
    kept += (row * tl.cdiv(T, TILE) + first // TILE) * 4 * A + channel
    a, b, top, age = _load_state(spans + (row * n + segment) * 4 * A + channel, A, None)
    keys = _rows(k, first, end, A, TILE, WHOLE)
    values = _rows(v, first, end, A, TILE, WHOLE)
    for begin in range(0, length, TILE):
        ahead = tl.minimum(begin + TILE, length - TILE)
        next_keys = _rows(k + ahead * A, first + ahead, end, A, TILE, WHOLE)
        next_values = _rows(v + ahead * A, first + ahead, end, A, TILE, WHOLE)
        if STARTS:
            flags = _rows(starts + begin, first + begin, end, 1, TILE, WHOLE)
        if KEEP:
            _store_state(kept + begin // TILE * 4 * A, a, b, top, age, A, first + begin < end)
        for i in tl.static_range(TILE):
            inside = first + begin + i < end
            if STARTS:
                a, b, top, age = _fresh(a, b, top, age, flags[i])
            key, value = keys[i].to(tl.float32), values[i].to(tl.float32)
            found = _output(a, b, tl.fma(age, decay, top - key) - bonus, value)[0]
            tl.store(y + (begin + i) * A, found.to(y.dtype.element_ty), mask=inside)
            new_a, new_b, new_top, new_age, _, _ = _step(a, b, top, age, key, value, decay)
            if WHOLE:
                a, b, top, age = new_a, new_b, new_top, new_age
            else:
                a, b = tl.where(inside, new_a, a), tl.where(inside, new_b, b)
                top, age = tl.where(inside, new_top, top), tl.where(inside, new_age, age)
        keys, values = next_keys, next_values
    last = segment == n - 1
    after += row * 3 * A + channel
    tl.store(after, a, mask=last)
    tl.store(after + A, b, mask=last)
    tl.store(after + 2 * A, tl.fma(age, decay, top), mask=last)
    if KEEP:
        tl.store(ages + row * A + channel, age, mask=last)


@triton.jit
def gradient_sums(
    log_w,
    u,
    k,
    v,
    starts,
    kept,
    dy,
    ends,
    T,
    A,
    n,
    length,
    lanes,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    STARTS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """For each segment but the first, at the place of the one before: the gradients of a and b before it by
    its own y, and how much of them is left after it; lanes (B, n - 1, A).
    """
    channel, segment, row = _place(A, n - 1, lanes, LANES)
    segment += 1
    decay, bonus = tl.load(log_w + channel).to(tl.float32), tl.load(u + channel).to(tl.float32)
    first = segment * length
    end = tl.minimum(first + length, T)
    token = row * T + first
    k += token * A + channel
    v += token * A + channel
    dy += token * A + channel
    starts += token
    a, b, top, age = _load_state(kept + (row * tl.cdiv(T, TILE) + first // TILE) * 4 * A + channel, A, None)
    da = tl.zeros([LANES], tl.float32)
    db = da
    left = da + 1.0
    keys = _rows(k, first, end, A, TILE, WHOLE)
    values = _rows(v, first, end, A, TILE, WHOLE)
    dys = _rows(dy, first, end, A, TILE, WHOLE)
    for begin in range(0, length, TILE):
        ahead = tl.minimum(begin + TILE, length - TILE)
        next_keys = _rows(k + ahead * A, first + ahead, end, A, TILE, WHOLE)
        next_values = _rows(v + ahead * A, first + ahead, end, A, TILE, WHOLE)
        next_dys = _rows(dy + ahead * A, first + ahead, end, A, TILE, WHOLE)
        if STARTS:
            flags = _rows(starts + begin, first + begin, end, 1, TILE, WHOLE)
        for i in tl.static_range(TILE):
            inside = first + begin + i < end
            if STARTS:
                a, b, top, age = _fresh(a, b, top, age, flags[i])
                left = tl.where(flags[i] == 0, left, 0.0)
            key, value = keys[i].to(tl.float32), values[i].to(tl.float32)
            found, denominator, out, _ = _output(a, b, tl.fma(age, decay, top - key) - bonus, value)
            dnumerator = dys[i].to(tl.float32) / denominator * out * left
            if not WHOLE:
                dnumerator = tl.where(inside, dnumerator, 0.0)
            da += dnumerator
            db -= dnumerator * found
            a, b, top, age, past, _ = _step(a, b, top, age, key, value, decay)
            left *= past if WHOLE else tl.where(inside, past, 1.0)
        keys, values, dys = next_keys, next_values, next_dys
    ends += (row * n + segment - 1) * 3 * A + channel
    tl.store(ends, da)
    tl.store(ends + A, db)
    tl.store(ends + 2 * A, left)


@triton.jit
def gradient_join(ends, A, n, lanes, LANES: tl.constexpr):
    """The gradients of a and b after each segment, from that after the last one; lanes (B, A)."""
    channel, _, row = _place(A, 1, lanes, LANES)
    own = _are_inside(lanes, LANES)
    ends += row * n * 3 * A + channel
    last = ends + (n - 1) * 3 * A
    da, db = tl.load(last, mask=own), tl.load(last + A, mask=own)
    for back in range(1, n):
        at = ends + (n - 1 - back) * 3 * A
        left = tl.load(at + 2 * A, mask=own)
        da = left * da + tl.load(at, mask=own)
        db = left * db + tl.load(at + A, mask=own)
        tl.store(at, da, mask=own)
        tl.store(at + A, db, mask=own)


@triton.jit
def backward(
    log_w,
    u,
    k,
    v,
    starts,
    kept,
    dy,
    ends,
    dp,
    winner,
    dlog_w,
    du,
    dk,
    dv,
    dbefore,
    T,
    A,
    n,
    length,
    lanes,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    STARTS: tl.constexpr,
    WHOLE: tl.constexpr,
    FINAL: tl.constexpr,
):
    """All gradients, those of log_w and u as sums over each segment; lanes (B, n, A).

    Neither y nor what the state means depends on p: with the gradients da, db of the scaled sums, exponents
    can be taken as constants but for what each belongs to. Where FINAL, there is a gradient `dp` of the p
    after the row itself. It goes to the token that p came from, the `winner`, -1 being the state before the
    row, and to the decays since.
    """
    channel, segment, row = _place(A, n, lanes, LANES)
    decay, bonus = tl.load(log_w + channel).to(tl.float32), tl.load(u + channel).to(tl.float32)
    first = segment * length
    end = tl.minimum(first + length, T)
    token = row * T + first
    k += token * A + channel
    v += token * A + channel
    dy += token * A + channel
    dk += token * A + channel
    dv += token * A + channel
    starts += token
    kept += (row * tl.cdiv(T, TILE) + first // TILE) * 4 * A + channel
    ends += (row * n + segment) * 3 * A + channel
    da, db = tl.load(ends), tl.load(ends + A)
    sum_w = tl.zeros([LANES], tl.float32)
    sum_u = sum_w
    if FINAL:
        of_p, of_token = tl.load(dp + row * A + channel), tl.load(winner + row * A + channel)
    begin = length - TILE
    keys = _rows(k + begin * A, first + begin, end, A, TILE, WHOLE)
    values = _rows(v + begin * A, first + begin, end, A, TILE, WHOLE)
    dys = _rows(dy + begin * A, first + begin, end, A, TILE, WHOLE)
    # Behind the row's end there is no state kept; what is computed there counts for nothing.
    within = tl.minimum(begin, (end - 1 - first) // TILE * TILE)
    state = _load_state(kept + within // TILE * 4 * A, A, None)
    first_a, first_b = da, db
    for back in range(0, length, TILE):
        begin = length - TILE - back
        ahead = tl.maximum(begin - TILE, 0)
        next_keys = _rows(k + ahead * A, first + ahead, end, A, TILE, WHOLE)
        next_values = _rows(v + ahead * A, first + ahead, end, A, TILE, WHOLE)
        next_dys = _rows(dy + ahead * A, first + ahead, end, A, TILE, WHOLE)
        within = tl.minimum(ahead, (end - 1 - first) // TILE * TILE)
        next_state = _load_state(kept + within // TILE * 4 * A, A, None)
        if STARTS:
            flags = _rows(starts + begin, first + begin, end, 1, TILE, WHOLE)
        a, b, top, age = state
        first_a, first_b = a, b
        before_a, before_b, differences = (), (), ()
        for i in tl.static_range(TILE):
            if STARTS:
                a, b, top, age = _fresh(a, b, top, age, flags[i])
            key, value = keys[i].to(tl.float32), values[i].to(tl.float32)
            before_a += (a,)
            before_b += (b,)
            a, b, top, age, _, difference = _step(a, b, top, age, key, value, decay)
            differences += (difference,)
        for i in tl.static_range(TILE - 1, -1, -1):
            inside = first + begin + i < end
            a, b, difference = before_a[i], before_b[i], differences[i]
            value = values[i].to(tl.float32)
            found, denominator, out, own = _output(a, b, difference - decay - bonus, value)
            past, present = _factors(difference)
            dnumerator = dys[i].to(tl.float32) / denominator
            of_own = dnumerator * (value - found) * own
            of_decay = past * (da * a + db * b)
            of_key = of_own + (da * value + db) * present
            of_value = dnumerator * own + da * present
            new_da = da * past + dnumerator * out
            new_db = db * past - dnumerator * found * out
            if FINAL:
                at = first + begin + i
                of_key += tl.where(of_token == at, of_p, 0.0)
                # Added here, where it cancels what the scaled sums give, and not once for all tokens.
                of_decay += tl.where(of_token < at, of_p, 0.0)
            tl.store(dk + (begin + i) * A, of_key.to(dk.dtype.element_ty), mask=inside)
            tl.store(dv + (begin + i) * A, of_value.to(dv.dtype.element_ty), mask=inside)
            if WHOLE:
                sum_u += of_own
                sum_w += of_decay
                da, db = new_da, new_db
            else:
                sum_u += tl.where(inside, of_own, 0.0)
                sum_w += tl.where(inside, of_decay, 0.0)
                da, db = tl.where(inside, new_da, da), tl.where(inside, new_db, db)
            if STARTS:
                da, db = tl.where(flags[i] == 0, da, 0.0), tl.where(flags[i] == 0, db, 0.0)
        keys, values, dys, state = next_keys, next_values, next_dys, next_state
    tl.store(dlog_w + (row * n + segment) * A + channel, sum_w)
    tl.store(du + (row * n + segment) * A + channel, sum_u)
    of_before = da * first_a + db * first_b
    if FINAL:
        of_before += tl.where(of_token < 0, of_p, 0.0)
    dbefore += row * 3 * A + channel
    tl.store(dbefore, da, mask=segment == 0)
    tl.store(dbefore + A, db, mask=segment == 0)
    tl.store(dbefore + 2 * A, of_before, mask=segment == 0)
