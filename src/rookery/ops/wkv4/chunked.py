"""RWKV-4's recurrence, time-parallel: the loop inside all chunks at once, then a pass over the chunks.

The sums over a span of tokens are kept as (a, b, p): numerator and denominator, scaled by exp(-p), where p is
the largest exponent. Spans compose: the exponents of the first one fall by the decays of the second, and both
are scaled to the larger p. So

1. in each chunk, from nothing, the sums over the tokens before each token: C steps, each for all chunks;
2. the state before each chunk: T / C steps;
3. y at each token, from three spans: the state before the chunk, the chunk so far, and the token itself.

With C about the square root of T, some 2 sqrt(T) steps take the place of T. Each p is the maximum that the
sequential loop finds, so that the states of both are interchangeable. As there, exponents are in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rookery.ops.recompute import recomputed
from rookery.state import NO_MAXIMUM

__all__ = ["wkv4_chunked"]

# Tokens computed together on a CPU: enough for few steps, few enough that the cache holds what they need.
SEGMENT = 256


def wkv4_chunked(
    log_w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv4`, in one dtype."""
    T = v.shape[1]
    run = SEGMENT if v.device.type == "cpu" else T
    parts = [slice(start, min(start + run, T)) for start in range(0, T, run)]
    y, after = recomputed(_segment, parts, (log_w, u), (k, v), state.double(), starts)
    return y, after.to(state.dtype)


class _Span(NamedTuple):
    """Sums over some tokens, scaled by exp(-p)."""

    a: Tensor
    b: Tensor
    p: Tensor


def _merge(first: _Span, second: _Span) -> _Span:
    """The sum of two spans whose exponents both refer to the end of the second."""
    top = torch.maximum(first.p, second.p)
    left, right = (first.p - top).to(second.a).exp(), (second.p - top).to(second.a).exp()
    return _Span(left * first.a + right * second.a, left * first.b + right * second.b, top)


def _stack(spans: Sequence[_Span], dim: int) -> _Span:
    return _Span(*(torch.stack(parts, dim) for parts in zip(*spans, strict=True)))


def _segment(
    fixed: Sequence[Tensor], moving: Sequence[Tensor], state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    log_w, u = (x.double() for x in fixed)
    B, T, A = moving[0].shape
    C = isqrt(T)
    n = -(-T // C)
    k, v = (pad(x, (0, 0, 0, n * C - T)).view(B, n, C, A) for x in moving)
    key = k.double()
    begins = sees_state = None
    if starts is not None:
        begins = pad(starts, (0, n * C - T)).view(B, n, C, 1)
        unbroken = begins.cumsum(2) == 0
        # At [c], whether the state before the chunk reaches token c; at [C], whether it reaches the end.
        sees_state = torch.cat([unbroken, unbroken[:, :, -1:]], dim=2)

    # 1. At [c] the sums over the tokens of a chunk before token c, and at [C] over all of them.
    zero, one = v.new_zeros(()), v.new_ones(())
    nothing = _Span(zero, zero, key.new_tensor(NO_MAXIMUM))
    span = _Span(*(x.expand(B, n, A) for x in nothing))
    spans = []
    for c in range(C):
        if begins is not None:
            start = begins[:, :, c]
            span = _Span(*(torch.where(start, new, old) for new, old in zip(nothing, span, strict=True)))
        spans.append(span)
        span = _merge(_Span(span.a, span.b, span.p + log_w), _Span(v[:, :, c], one, key[:, :, c]))
    inner = _stack([*spans, span], dim=2)

    # 2. All in float64: these are few numbers, and every later token depends on them.
    span = _Span(*state.unbind(1))
    before = []
    for i in range(n):
        before.append(span)
        count = min(C, T - i * C)
        p = span.p + count * log_w
        if sees_state is not None:
            p = torch.where(sees_state[:, i, count], p, NO_MAXIMUM)
        span = _merge(_Span(span.a, span.b, p), _Span(*(x[:, i, count].double() for x in inner)))
    outer = _stack(before, dim=1)

    # 3. y does not depend on what the sums are scaled by: no gradient flows through that.
    near = _Span(*(x[:, :, :C] for x in inner))
    passed = torch.arange(C, device=v.device)[:, None] * log_w
    far_p = outer.p[:, :, None] + passed
    if sees_state is not None:
        far_p = torch.where(sees_state[:, :, :C], far_p, NO_MAXIMUM)
    own_p = key + u
    top = torch.maximum(torch.maximum(far_p, near.p), own_p).detach()
    far, inside, own = ((p - top).to(v.dtype).exp() for p in (far_p, near.p, own_p))
    a, b = (x[:, :, None].to(v.dtype) for x in (outer.a, outer.b))
    y = (far * a + inside * near.a + own * v) / (far * b + inside * near.b + own)
    return y.reshape(B, n * C, A)[:, :T], torch.stack(span, dim=1)
