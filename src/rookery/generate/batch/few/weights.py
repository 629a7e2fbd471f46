"""Which models the kernels of few streams read, and what of their weights is laid out anew for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rookery.models import RWKV
from rookery.models.channel_mixing import ChannelMixing7
from rookery.models.parts import HeadNorm
from rookery.models.rwkv7 import TimeMixing7
from rookery.models.sequence_model import Block
from rookery.ops.triton import READS

__all__ = ["ALIGNED", "Layer", "LowRank", "Weights", "serves", "weights_of"]

ALIGNED = 32
"""Rows to a multiple of which each first half of low rank is filled up, so that a program has rows of one."""

_LINEAR = ("receptance", "key", "value", "output")


class LowRank(NamedTuple):
    """The ranks of a layer, and where the rows of each first half end in the matrix of them all."""

    decay: int
    iclr: int
    value: int
    """0 in the first layer."""
    gate: int

    @property
    def ends(self) -> tuple[int, ...]:
        """After the decay, the learning rate, the values, and the gate."""
        ends, end = [], 0
        for rank in self:
            end += -(-rank // ALIGNED) * ALIGNED
            ends.append(end)
        return tuple(ends)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer: its modules, and what of their weights is laid out anew."""

    block: Block
    att: TimeMixing7
    ffn: ChannelMixing7

    ranks: LowRank

    low: Tensor
    """[R, D]: w1, a1, v1 and g1, transposed."""

    shares: Tensor
    """[6, D]: x_r, x_k, x_v, x_w, x_a, x_g."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What the steps over any number of streams share."""

    model: RWKV
    layers: tuple[Layer, ...]


def serves(model: RWKV) -> bool:
    """Whether the kernels read this model: RWKV-7 of plain modules, its weights of one of their dtypes.

    Quantized matrices, adapters and parametrised weights are other modules; those go the general way.
    """
    parts = list(_parts(model))
    weights = list(model.parameters())
    kinds = {weight.dtype for weight in weights}
    return (
        model.config.version == "7"
        and model.config.head_size <= 128
        and all(type(part) is kind for part, kind in parts)
        and len(kinds) == 1
        and kinds <= set(READS)
        and all(weight.is_contiguous() for weight in weights)
    )


def _parts(model: RWKV) -> Iterator[tuple[object, type]]:
    """What a step computes with, and the type that the kernels take it for."""
    yield from ((model.emb, nn.Embedding), (model.ln_out, nn.LayerNorm), (model.head, nn.Linear))
    for i, block in enumerate(model.blocks):
        yield block, Block
        if not isinstance(block, Block):
            return
        att, ffn = block.att, block.ffn
        yield from (
            (att, TimeMixing7),
            (ffn, ChannelMixing7),
            (block.ln0, nn.Identity if i else nn.LayerNorm),
            (block.ln1, nn.LayerNorm),
            (block.ln2, nn.LayerNorm),
        )
        if not isinstance(att, TimeMixing7) or not isinstance(ffn, ChannelMixing7):
            return
        yield att.ln_x, HeadNorm
        yield from ((getattr(att, name), nn.Linear) for name in _LINEAR)
        yield from ((ffn.key, nn.Linear), (ffn.value, nn.Linear))
        low_rank = "wavg" if i else "wag"
        yield from ((getattr(att, f"{name}{half}"), nn.Parameter) for name in low_rank for half in "12")


def weights_of(model: RWKV) -> Weights:
    """Lay out what is small: for each layer the first halves of low rank, and the weights of its token shift.

    Of 1.5 billion parameters these are 26 million. A change of them would not be seen; all other weights are
    read where they are.
    """
    with torch.no_grad():
        return Weights(model=model, layers=tuple(_layer(block) for block in model.blocks))


def _layer(block: nn.Module) -> Layer:
    assert isinstance(block, Block)
    att, ffn = block.att, block.ffn
    assert isinstance(att, TimeMixing7)
    assert isinstance(ffn, ChannelMixing7)
    first = att.depth.layer == 0
    halves = [att.w1, att.a1, att.w1[:, :0] if first else att.v1, att.g1]
    ranks = LowRank(*(half.shape[1] for half in halves))
    low = att.w1.new_zeros(ranks.ends[-1], att.w1.shape[0])
    for half, end in zip(halves, ranks.ends, strict=True):
        start = end - -(-half.shape[1] // ALIGNED) * ALIGNED
        low[start : start + half.shape[1]] = half.T
    shares = torch.stack([x.flatten() for x in (att.x_r, att.x_k, att.x_v, att.x_w, att.x_a, att.x_g)])
    return Layer(block=block, att=att, ffn=ffn, ranks=ranks, low=low, shares=shares)
