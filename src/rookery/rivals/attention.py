"""Softmax attention with rotary positions (arXiv 1706.03762, arXiv 2104.09864).

q, k, v = W_q x, W_k x, W_v x                             in heads of K channels
q, k    = R_t q, R_t k                                    the first channels turned by the position
o       = W_o (softmax(q . k_i / sqrt(K) over i <= t) v_i)

The state is every key and value of the document: it grows, and so does the time that a token takes.

A state is never written into, so that adding a token means a copy. Single tokens are added to a short tail,
which joins the rest every ``TAIL`` tokens: with 65536 tokens kept, copying all of them for each token would
take ten times as long as the attention itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rookery.models.initial import orthogonal
from rookery.ops.tensors import full_precision
from rookery.rivals.config import RivalConfig
from rookery.rivals.mixing import ANY, RivalMixing, positions, visible

__all__ = ["TAIL", "Attention", "KeyValueCache"]

TAIL = 128
"""The longest tail, in tokens."""


class KeyValueCache(NamedTuple):
    """What attention carries, in one layer, from one call to the next."""

    keys: Tensor
    """[B, H, S, K], turned by their positions."""

    values: Tensor
    """[B, H, S, K]."""

    tail_keys: Tensor
    """[B, H, R, K]: of the R tokens after those; R is at most ``TAIL``."""

    tail_values: Tensor
    """[B, H, R, K]."""

    position: Tensor
    """[B] int64: tokens read of the present document; the last so many of all S + R are its own."""

    @property
    def tokens(self) -> int:
        """How many tokens are kept, S + R."""
        return self.keys.shape[2] + self.tail_keys.shape[2]


class _Places(NamedTuple):
    """What follows from positions alone, and is the same in all layers."""

    cos: Tensor
    """[B, 1, T, rotary_size / 2], float32."""

    sin: Tensor
    """As ``cos``."""

    mask: Tensor | None
    """[B, 1, T, S + R + T] bool: which tokens each token sees; None where that is all up to itself."""

    after: Tensor
    """[B] int64: the position of the next token."""

    keep: int | None
    """How many of the last tokens are of a document that goes on; None for all."""


class Attention(RivalMixing):
    """Causal attention over the document."""

    def __init__(self, config: RivalConfig, layer: int):
        super().__init__(config, layer)
        D, bias = config.width, config.attention_bias
        self.query = nn.Linear(D, D, bias=bias)
        self.key = nn.Linear(D, D, bias=bias)
        self.value = nn.Linear(D, D, bias=bias)
        self.output = nn.Linear(D, D, bias=bias)

    def forward(
        self,
        x: Tensor,
        state: KeyValueCache | None,
        v_first: _Places | None,
        *,
        starts: Tensor | None = None,
        implementation: str | None = None,
    ) -> tuple[Tensor, KeyValueCache, _Places]:
        """See ``TimeMixing.forward``."""
        places = self.places(x, state, starts) if v_first is None else v_first
        heads = (*x.shape[:2], self.config.num_heads, self.config.head_size)
        q, k, v = (each(x).view(heads).transpose(1, 2) for each in (self.query, self.key, self.value))
        q, k = (_turn(each, places.cos, places.sin) for each in (q, k))
        if state is not None and x.shape[1] == 1 and places.keep is None and state.tail_keys.shape[2] < TAIL:
            y, after = _step(q, k, v, state, places)
        else:
            y, after = _span(q, k, v, state, places)
        return self.output(y.transpose(1, 2).flatten(2)), after, places

    def places(self, x: Tensor, state: KeyValueCache | None, starts: Tensor | None) -> _Places:
        """What all layers share."""
        B, T, _ = x.shape
        device = x.device
        before = torch.zeros(B, dtype=torch.int64, device=device) if state is None else state.position
        cached = 0 if state is None else state.tokens
        position = positions(T, before, starts)
        dtype = full_precision(x).dtype
        half = torch.arange(self.config.rotary_size // 2, device=device, dtype=dtype)
        speed = self.config.rotary_base ** (-2 * half / max(self.config.rotary_size, 1))
        angle = position[:, None, :, None] * speed
        after = position[:, -1] + 1
        # On a CPU looking at values is cheap; elsewhere it waits for the device.
        whole = cached == 0 or (T == 1 and device.type == "cpu" and int(before.min()) == cached)
        mask = None if starts is None and whole else visible(position, cached)[:, None]
        keep = None if starts is None else int(after.max())
        return _Places(angle.cos(), angle.sin(), mask, after, keep)

    def state_shapes(self, streams: int) -> tuple[tuple[int, ...], ...]:
        """See ``RivalMixing.state_shapes``."""
        cache = (streams, self.config.num_heads, ANY, self.config.head_size)
        return cache, cache, cache, cache, (streams,)

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """RWKV's: orthogonal matrices, and zeros before the residual sum."""
        D = self.config.width
        values = {f"{name}.weight": orthogonal((D, D), generator) for name in ("query", "key", "value")}
        values["output.weight"] = torch.zeros(D, D)
        if self.config.attention_bias:
            values |= {f"{name}.bias": torch.zeros(D) for name in ("query", "key", "value", "output")}
        return values


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel i of the first half against channel i of the second half, in the rotary part of x."""
    rotary = 2 * cos.shape[-1]
    if rotary == 0:
        return x
    first, second, rest = x.split((rotary // 2, rotary // 2, x.shape[-1] - rotary), dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def _step(
    q: Tensor, k: Tensor, v: Tensor, state: KeyValueCache, places: _Places
) -> tuple[Tensor, KeyValueCache]:
    """One token, whose key and value join the tail."""
    tail_keys = torch.cat((state.tail_keys.to(k.dtype), k), dim=2)
    tail_values = torch.cat((state.tail_values.to(v.dtype), v), dim=2)
    q = q * q.shape[-1] ** -0.5
    scores = torch.cat((q @ state.keys.to(k.dtype).mT, q @ tail_keys.mT), dim=-1)
    if places.mask is not None:
        scores = scores.masked_fill(~places.mask, -torch.inf)
    weights = torch.softmax(full_precision(scores), dim=-1).to(v.dtype)
    old, new = weights.split((state.keys.shape[2], tail_keys.shape[2]), dim=-1)
    y = old @ state.values.to(v.dtype) + new @ tail_values
    return y, KeyValueCache(state.keys, state.values, tail_keys, tail_values, places.after)


def _span(
    q: Tensor, k: Tensor, v: Tensor, state: KeyValueCache | None, places: _Places
) -> tuple[Tensor, KeyValueCache]:
    """Any number of tokens; nothing is left in the tail."""
    if state is not None:
        k = torch.cat((state.keys.to(k.dtype), state.tail_keys.to(k.dtype), k), dim=2)
        v = torch.cat((state.values.to(v.dtype), state.tail_values.to(v.dtype), v), dim=2)
    # With nothing masked and several tokens there is no state: the square case that is_causal means.
    causal = places.mask is None and q.shape[2] > 1
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=places.mask, is_causal=causal)
    if places.keep is not None:
        k, v = (each[:, :, each.shape[2] - places.keep :].clone() for each in (k, v))
    # Tensors of their own, in one run of memory, and none that keeps a larger one.
    k, v = k.contiguous(), v.contiguous()
    return y, KeyValueCache(k, v, k[:, :, :0].clone(), v[:, :, :0].clone(), places.after)
