"""RWKV-6's recurrence, time-parallel, for decays of any strength.

Token i of a chunk reads token j < i through the decays between them, exp(sum of log_w over j < l < i).
Decays may be e^-50, so that factors exp(+sum) of the usual split overflow, and differences of long sums
lose digits. Here each pair is split at a token m between them, exp(sum over m <= l < i) exp(sum over j < l
< m), where m is the middle of the smallest block of a halving of the chunk that holds both: halves of 8, 4,
2, 1 in a chunk of 16. Each exponent is a sum of a few numbers that are not positive, never a difference:
nothing overflows, no digit is lost. The sums are products of log_w with constant matrices of zeros and ones
(``_spans``).

Between the chunks the state goes through a short sequential pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from rookery.ops.chunks import document_masks, from_chunks, segments, to_chunks
from rookery.ops.recompute import recomputed

__all__ = ["decayed_outer_products", "wkv6_chunked"]

CHUNK = 16


def wkv6_chunked(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv6`, in one dtype."""
    parts = segments(v.shape[1], CHUNK, v.shape[0] * v.shape[2], v.device.type)
    return recomputed(_segment, parts, (u,), (r, log_w, k, v), state, starts)


def _segment(
    fixed: Sequence[Tensor], moving: Sequence[Tensor], state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    (u,) = fixed
    r, log_w, k, v = moving
    return decayed_outer_products(r, to_chunks(log_w, min(CHUNK, v.shape[1])), k, v, u, state, starts)


@cache
def _spans(C: int) -> tuple[Tensor, Tensor]:
    """For each level of the halving, and for the chunk's start and end, which decays a token goes through.

    Returns:
        spans [levels + 1, C, C], 0 or 1: at [level, i, l], whether token l lies between token i and the
        middle of i's block, for halves of 2 and more; at [-2], between the chunk's start and i; at [-1],
        between i and the chunk's end.
        pairs [levels, C, C], 0 or 1: at [level, i, j], whether j is in the first half of a block and i in the
        second.
    """
    # What is made inside inference_mode could never take part in training afterwards.
    with torch.inference_mode(False):
        token = torch.arange(C, device="cpu")
        i, j = token[:, None], token[None]
        spans, pairs = [], []
        for half in (2**level for level in range(max(1, (C - 1).bit_length()))):
            middle = i // (2 * half) * (2 * half) + half
            spans.append(torch.where(i < middle, (j > i) & (j < middle), (j >= middle) & (j < i)))
            pairs.append((i >= middle) & (j < middle) & (j >= middle - half))
        # Between neighbours, the halves of 1, there are no tokens.
        return torch.stack([*spans[1:], j < i, j > i]).float(), torch.stack(pairs).float()


def decayed_outer_products(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, u: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The recurrence of RWKV-5 and 6 over some chunks, as differentiable torch code.

    Args:
        r, k, v, u, state, starts: as for `rookery.ops.wkv6`.
        log_w: [n, B, H, C, K] by chunks, or broadcasting to it with n = B = 1: a decay that does not vary.

    Returns:
        y [B, T, H, V] and the state after the last token.
    """
    T = v.shape[1]
    C = log_w.shape[3]
    spans, pairs = (x.to(v) for x in _spans(C))
    r, k, v = (to_chunks(x, C) for x in (r, k, v))
    n = r.shape[0]

    # A factor for each pair of level and token, [.., levels, C, K].
    factors = (spans.flatten(0, 1) @ log_w).unflatten(3, (-1, C)).exp()
    levels = factors[..., :-2, :, :]
    near = r @ k.mT
    far = (r[..., None, :, :] * levels) @ (k[..., None, :, :] * levels).mT
    scores = near * pairs[0] + (far * pairs[1:]).sum(-3)
    own = (r * u[:, None] * k).sum(-1, keepdim=True)
    readers, writers = r * factors[..., -2, :, :], k * factors[..., -1, :, :]
    through = log_w.sum(3).exp()[..., None].expand(n, *(-1,) * 4)
    if starts is not None:
        masks = document_masks(starts, C)
        scores = scores * masks.same
        readers, writers = readers * masks.sees_state, writers * masks.reaches_state
        through = through * masks.passes

    learned = writers.mT @ v
    states = [state]
    for i in range(n):
        states.append(torch.addcmul(learned[i], through[i], states[-1]))
    y = scores @ v + own * v + readers @ torch.stack(states[:-1])
    return from_chunks(y, T), states[-1]
