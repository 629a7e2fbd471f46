"""Rows of tokens as chunks: the layout, the decays and the document masks that the chunked forms share."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import pad

__all__ = ["DocumentMasks", "document_masks", "from_chunks", "segments", "to_chunks"]


def to_chunks(x: Tensor, length: int) -> Tensor:
    """[B, T, H, K] -> a view [n, B, H, C, K] of n chunks of C = `length` tokens, the last padded with zeros.

    Chunks come first, so that one step of the pass over the chunks reads memory that lies together.
    """
    B, T, H, K = x.shape
    missing = -T % length
    if missing:
        x = pad(x, (0, 0, 0, 0, 0, missing))
    return x.view(B, -1, length, H, K).permute(1, 0, 3, 2, 4)


def from_chunks(x: Tensor, tokens: int) -> Tensor:
    """The inverse of `to_chunks`: [n, B, H, C, K] -> [B, T, H, K]."""
    n, B, H, C, K = x.shape
    return x.permute(1, 0, 3, 2, 4).reshape(B, n * C, H, K)[:, :tokens]


class DocumentMasks(NamedTuple):
    """Which tokens of a chunk see which, where documents start inside rows; bool, broadcasting over heads."""

    same: Tensor
    """[n, B, 1, C, C]: tokens i and j are of one document."""

    sees_state: Tensor
    """[n, B, 1, C, 1]: the state before the chunk is of token i's document."""

    reaches_state: Tensor
    """[n, B, 1, C, 1]: the state after the chunk is of token j's document."""

    passes: Tensor
    """[n, B, 1, 1, 1]: no document starts in the chunk, so that the state passes through it."""


def document_masks(starts: Tensor, length: int) -> DocumentMasks:
    """The masks of rows in which documents start at `starts` [B, T] bool."""
    B, T = starts.shape
    begun = pad(starts, (0, -T % length)).view(B, -1, length).transpose(0, 1)[:, :, None].cumsum(-1)
    last = begun[..., -1:]
    return DocumentMasks(
        same=begun[..., :, None] == begun[..., None, :],
        sees_state=(begun == 0)[..., None],
        reaches_state=(begun == last)[..., None],
        passes=(last == 0)[..., None],
    )


def segments(tokens: int, length: int, heads: int, device: str) -> list[slice]:
    """Cut T tokens into runs of whole chunks that are computed together, and a rest; as slices of time.

    On a CPU a run has about 128 chunks of single heads, whose tensors then stay in the second-level cache
    (products of 128 small matrices run there at twice the speed of 1024). Elsewhere all is one run.
    """
    run = max(1, 128 // heads) * length if device == "cpu" else tokens
    whole = tokens - tokens % length
    parts = [slice(start, min(start + run, whole)) for start in range(0, whole, run)]
    return parts if whole == tokens else [*parts, slice(whole, tokens)]
