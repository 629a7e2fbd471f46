"""Kernels of a step of few streams; the package says in which order they run and what they pass on.

A matrix is multiplied by the vectors of M streams, element by element: for so few of them all that counts is
to have many weights on their way from memory. A program has G times BN rows of a matrix, and goes over its D
columns in tiles [BN, BK]. It asks for the first tile before anything else, and for the next one before it
uses this one. VEC columns of a tile lie together in one lane and are added up there; the lanes' sums are
added up at the end.

They compute in float32. All vectors between them are of it as well, but for what `add_product` multiplies,
which is of the weights' dtype: lanes then read as many numbers of a vector at once as of a matrix. A token's
result does not depend on how many streams there are: M and G change no order of summation.
"""

# Triton's loops are no iterators to a type checker.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from rookery.ops.tiles import load_row, load_state, store_row, store_state

__all__ = ["add_product", "embed", "head", "key", "mix", "project"]


@triton.jit
def _tile(weight, row, column, ROWS, D: tl.constexpr):
    """[BN, BK] weights as they are stored, 0 outside of the matrix; read once, they need not stay cached."""
    inside = (row[:, None] < ROWS) & (column[None, :] < D)
    at = row.to(tl.int64)[:, None] * D + column[None, :]
    return tl.load(weight + at, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def _part(vector, column, D: tl.constexpr):
    """[1, BK] numbers in float32: an axis more than a vector, so that each lane reads what it multiplies."""
    return tl.load(vector + column[None, :], mask=column[None, :] < D, other=0.0).to(tl.float32)


@triton.jit
def _sums(tile, x, BN: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    """[BN, LANES]: the products of a tile with [1, BK], as far as each lane can add them up."""
    return tl.sum(tl.reshape(tile.to(tl.float32) * x, [BN, LANES, VEC]), axis=2)


@triton.jit
def _moments(x, epsilon, D: tl.constexpr, BD: tl.constexpr):
    """The mean of a row, and one over its standard deviation."""
    channel = tl.arange(0, BD)
    row = load_row(x, 0, 0, D, channel)
    mean = tl.sum(row, axis=0) / D
    centred = tl.where(channel < D, row - mean, 0.0)
    return mean, 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / D + epsilon)


@triton.jit
def _products(
    weight, first, ROWS, x, norm_weight, norm_bias, epsilon, shift, share, normal, writes,
    D: tl.constexpr, BD: tl.constexpr, M: tl.constexpr, SHIFT: tl.constexpr,
    G: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Rows of W [ROWS, D] times the layer norm of x [M, D]: G times M vectors [BN], first rows first.

    SHIFT: times the token shift of the norm, mixed with `shift` by `share`; where `writes`, the norm is
    written into `normal`.
    """
    LANES: tl.constexpr = BK // VEC
    row = first + tl.arange(0, BN)
    column = tl.arange(0, BK)
    tile = _tile(weight, row, column, ROWS, D)
    sums = ()
    for _ in tl.static_range(G * M):
        sums += (tl.zeros([BN, LANES], tl.float32),)
    means = ()
    scales = ()
    for m in tl.static_range(M):
        mean, scale = _moments(x + m * D, epsilon, D, BD)
        means += (mean,)
        scales += (scale,)
    for start in range(0, D, BK):
        at = start + column
        scaled = _part(norm_weight, at, D)
        moved = _part(norm_bias, at, D)
        if SHIFT:
            mixed = _part(share, at, D)
        vectors = ()
        for m in tl.static_range(M):
            vector = (_part(x + m * D, at, D) - means[m]) * scales[m] * scaled + moved
            if SHIFT:
                before = _part(shift + m * D, at, D)
                if writes:
                    tl.store(normal + m * D + at[None, :], vector, mask=at[None, :] < D)
                vector += (before - vector) * mixed
            vectors += (vector,)
        added = ()
        for g in tl.static_range(G):
            if g + 1 < G:
                following = _tile(weight, row + (g + 1) * BN, at, ROWS, D)
            else:
                following = _tile(weight, row, at + BK, ROWS, D)
            for m in tl.static_range(M):
                added += (sums[g * M + m] + _sums(tile, vectors[m], BN, LANES, VEC),)
            tile = following
        sums = added
    products = ()
    for i in tl.static_range(G * M):
        products += (tl.sum(sums[i], axis=1),)
    return products


@triton.jit
def embed(tokens, embedding, norm_weight, norm_bias, x, epsilon, D: tl.constexpr, BD: tl.constexpr):
    """The layer norm of each token's embedding."""
    stream = tl.program_id(0)
    channel = tl.arange(0, BD)
    row = load_row(embedding, tl.load(tokens + stream).to(tl.int64), D, D, channel)
    mean = tl.sum(row, axis=0) / D
    centred = tl.where(channel < D, row - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / D + epsilon)
    normal = centred * scale * load_row(norm_weight, 0, 0, D, channel) + load_row(norm_bias, 0, 0, D, channel)
    store_row(x, normal, stream, D, D, channel)


@triton.jit
def project(
    receptance, key, value, low, x, norm_weight, norm_bias, epsilon, shift, shares, projected, normal,
    A: tl.constexpr, WE: tl.constexpr, AE: tl.constexpr, VE: tl.constexpr, R: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, M: tl.constexpr,
    G: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """What time mixing makes of x: r, k, v [A], and the first halves of low rank [R] before any activation.

    The latter are of the decay up to row WE, of the learning rate up to AE, of the values up to VE, and of
    the gate; ends are multiples of G BN. `shares` [6, D] are those of r, k, v, w, a, g.
    """
    program = tl.program_id(0)
    BLOCKS: tl.constexpr = (A + G * BN - 1) // (G * BN)
    which = tl.minimum(program // BLOCKS, 3)
    first = (program - which * BLOCKS) * (G * BN)
    rows = A
    weight = receptance
    mixed = which
    if which == 1:
        weight = key
    elif which == 2:
        weight = value
    elif which == 3:
        weight = low
        rows = R
        if first < WE:
            mixed = 3
        elif first < AE:
            mixed = 4
        elif first < VE:
            mixed = 2
        else:
            mixed = 5
    products = _products(
        weight, first, rows, x, norm_weight, norm_bias, epsilon,
        shift, shares + mixed * D, normal, program == 0, D, BD, M, True, G, BN, BK, VEC,
    )  # fmt: skip
    for i in tl.static_range(G * M):
        row = first + i // M * BN + tl.arange(0, BN)
        store_row(projected + which * A, products[i], i % M, 3 * A + R, rows, row)


@triton.jit
def _up(matrix, channel, inside, A, RANK: tl.constexpr, BR: tl.constexpr):
    """[BR, BK]: the columns of a head in a matrix [RANK, A], as they are stored."""
    rank = tl.arange(0, BR)
    known = (rank[:, None] < RANK) & inside[None, :]
    return tl.load(matrix + rank[:, None] * A + channel[None, :], mask=known, other=0.0)


@triton.jit
def _hidden(vector, RANK: tl.constexpr, BR: tl.constexpr):
    """[BR, 1]: what a first half of low rank gave."""
    return load_row(vector, 0, 0, RANK, tl.arange(0, BR))[:, None]


@triton.jit
def _of_head(vector, channel, inside):
    """A head's numbers of a vector [A], in float32."""
    return tl.load(vector + channel, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def mix(
    projected, w2, a2, v2, g2, w0, a0, v0, k_k, k_a, r_k, norm_weight, norm_bias, epsilon, v_first, state, y,
    A: tl.constexpr, WE: tl.constexpr, AE: tl.constexpr, VE: tl.constexpr, R: tl.constexpr,
    WR: tl.constexpr, AR: tl.constexpr, VR: tl.constexpr, GR: tl.constexpr,
    WB: tl.constexpr, AB: tl.constexpr, VB: tl.constexpr, GB: tl.constexpr,
    K: tl.constexpr, BK: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """One head of one stream, from what `project` gave to what the output matrix reads.

    The equations are those of ``rookery.models.rwkv7``; the state [K, V] is written over. Of first halves
    there are R rows, those of a rank WR from 0 on, AR from WE, VR from AE, GR from VE. FIRST: of the first
    layer, whose values the others mix with theirs.
    """
    head = tl.program_id(0)
    stream = tl.program_id(1)
    own = tl.arange(0, BK)
    inside = own < K
    channel = head * K + own
    # All is asked for before anything waits: one after the other would take longer than all the rest.
    up_w = _up(w2, channel, inside, A, WR, WB)
    up_a = _up(a2, channel, inside, A, AR, AB)
    up_g = _up(g2, channel, inside, A, GR, GB)
    before = state + (stream * (A // K) + head).to(tl.int64) * (K * K)
    S = load_state(before, own, own, K, K)
    row = projected + stream * (3 * A + R)
    r = _of_head(row, channel, inside)
    k = _of_head(row + A, channel, inside)
    v = _of_head(row + 2 * A, channel, inside)
    hidden_w = _hidden(row + 3 * A, WR, WB)
    hidden_a = _hidden(row + 3 * A + WE, AR, AB)
    hidden_g = _hidden(row + 3 * A + VE, GR, GB)
    base_w = _of_head(w0, channel, inside)
    base_a = _of_head(a0, channel, inside)
    removing = _of_head(k_k, channel, inside)
    writing = _of_head(k_a, channel, inside)
    present = _of_head(r_k, channel, inside)
    scaled = _of_head(norm_weight, channel, inside)
    moved = _of_head(norm_bias, channel, inside)
    if FIRST:
        store_row(v_first + stream * A + head * K, v, 0, 0, K, own)
    else:
        up_v = _up(v2, channel, inside, A, VR, VB)
        hidden_v = _hidden(row + 3 * A + AE, VR, VB)
        base_v = _of_head(v0, channel, inside)
        of_first = _of_head(v_first + stream * A, channel, inside)
        v += (of_first - v) * tl.sigmoid(base_v + tl.sum(up_v.to(tl.float32) * hidden_v, axis=0))

    # tanh, of exponentials that cannot overflow.
    fading = tl.exp(-2.0 * tl.abs(hidden_w))
    hidden_w = tl.where(hidden_w < 0.0, -1.0, 1.0) * (1.0 - fading) / (1.0 + fading)
    w = base_w + tl.sum(up_w.to(tl.float32) * hidden_w, axis=0)
    # e^(-1/2): no channel forgets faster.
    decay = tl.exp(-0.6065306597126334 * tl.sigmoid(w))
    rate = tl.sigmoid(base_a + tl.sum(up_a.to(tl.float32) * hidden_a, axis=0))
    gate = tl.sum(up_g.to(tl.float32) * tl.sigmoid(hidden_g), axis=0)
    kappa = k * removing
    kappa /= tl.maximum(tl.sqrt(tl.sum(kappa * kappa, axis=0)), 1e-12)
    k *= 1.0 + (rate - 1.0) * writing

    removed = tl.sum(-kappa[:, None] * S, axis=0)
    S = decay[:, None] * S + (kappa * rate)[:, None] * removed[None, :] + k[:, None] * v[None, :]
    store_state(before, S, own, own, K, K)
    read = tl.sum(r[:, None] * S, axis=0)

    centred = tl.where(inside, read - tl.sum(read, axis=0) / K, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / K + epsilon)
    bonus = tl.sum(r * k * present, axis=0) * v
    store_row(y + stream * A + head * K, (centred * scale * scaled + moved + bonus) * gate, 0, 0, K, own)


@triton.jit
def add_product(
    weight, x, total, normal, shift,
    D: tl.constexpr, F: tl.constexpr, M: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, VEC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """total [M, D] += W x for x [M, F]; and the norm that the mixing read becomes its state's shift.

    Tiles go through shared memory, STAGES of them at a time: in registers, the compiler asks for the next one
    only when this one is used up.
    """
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    sums = ()
    for _ in tl.static_range(M):
        sums += (tl.zeros([BN, BK // VEC], tl.float32),)
    for start in tl.range(0, F, BK, num_stages=STAGES):
        at = start + tl.arange(0, BK)
        tile = _tile(weight, row, at, D, F)
        added = ()
        for m in tl.static_range(M):
            added += (sums[m] + _sums(tile, _part(x + m * F, at, F), BN, BK // VEC, VEC),)
        sums = added
    for m in tl.static_range(M):
        store_row(total, load_row(total, m, D, D, row) + tl.sum(sums[m], axis=1), m, D, D, row)
        at = m * D + row
        tl.store(shift + at, tl.load(normal + at, mask=row < D), mask=row < D)


@triton.jit
def key(
    weight, x, norm_weight, norm_bias, epsilon, shift, share, expanded, normal,
    F: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, M: tl.constexpr,
    G: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """The squared ReLU [M, F] of channel mixing."""
    program = tl.program_id(0)
    first = program * (G * BN)
    products = _products(
        weight, first, F, x, norm_weight, norm_bias, epsilon, shift, share, normal, program == 0,
        D, BD, M, True, G, BN, BK, VEC,
    )  # fmt: skip
    for i in tl.static_range(G * M):
        row = first + i // M * BN + tl.arange(0, BN)
        positive = tl.maximum(products[i], 0.0)
        store_row(expanded, positive * positive, i % M, F, F, row)


@triton.jit
def head(
    weight, x, norm_weight, norm_bias, epsilon, logits,
    N: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, M: tl.constexpr,
    G: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """The logits [M, N]."""
    first = tl.program_id(0) * (G * BN)
    products = _products(
        weight, first, N, x, norm_weight, norm_bias, epsilon, x, x, x, False,
        D, BD, M, False, G, BN, BK, VEC,
    )  # fmt: skip
    for i in tl.static_range(G * M):
        row = first + i // M * BN + tl.arange(0, BN)
        store_row(logits, products[i], i % M, N, N, row)
