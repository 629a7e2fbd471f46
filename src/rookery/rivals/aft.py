"""AFT-full, an attention-free transformer (arXiv 2105.14103, equation 2).

q, k, v = W_q x, W_k x, W_v x
y_t     = sigma(q_t) * (sum over i <= t of exp(k_i + w_ti) v_i) / (sum over i <= t of exp(k_i + w_ti))
o       = W_o y

w [context, context] are learned biases of pairs of positions in a document: a full matrix, or the product of
two narrow ones (the paper's section 3.2). They end at the context, and so does what the model can read. The
state is every key and value of the document.

exp(k_i + w_ti) is exp(w_ti) times exp(k_i), so that both sums are matrix products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rookery.errors import ConfigError
from rookery.models.initial import orthogonal
from rookery.ops.fused import sigmoid_gate
from rookery.ops.precision import without_autocast
from rookery.ops.tensors import full_precision
from rookery.rivals.config import RivalConfig
from rookery.rivals.mixing import ANY, RivalMixing, positions, visible

__all__ = ["AFT", "AFTState", "weighted_average"]

# The largest range of keys plus biases for which their exponentials are taken apart. Sums are then at least
# exp(-40), and what the backward pass divides by them stays far below float32's largest number, exp(88).
_RANGE = 40.0

# Numbers of one block of [B, t, S, D] where they are not taken apart.
_BLOCK = 1 << 22


class AFTState(NamedTuple):
    """What AFT carries, in one layer, from one call to the next."""

    keys: Tensor
    """[B, S, D]: of the last S tokens."""

    values: Tensor
    """[B, S, D]."""

    position: Tensor
    """[B] int64: tokens read of the present document; the last so many of the S are its own."""


class _Places(NamedTuple):
    """What follows from positions alone, and is the same in all layers."""

    rows: Tensor
    """[G, T] int64: the position of each token. G is 1 where all streams are at the same position, else B."""

    columns: Tensor
    """[G, S + T] int64: of each cached token and each token."""

    hidden: Tensor
    """[G, T, S + T] bool: which tokens each token does not see."""

    after: Tensor
    """[B] int64: the position of the next token."""

    keep: int | None
    """How many of the last tokens are of a document that goes on; None for all."""


class AFT(RivalMixing):
    """An average of values weighted by keys and by pairs of positions."""

    def __init__(self, config: RivalConfig, layer: int):
        super().__init__(config, layer)
        D, C, R = config.width, config.context, config.position_rank
        self.query = nn.Linear(D, D, bias=False)
        self.key = nn.Linear(D, D, bias=False)
        self.value = nn.Linear(D, D, bias=False)
        self.output = nn.Linear(D, D, bias=False)
        if R:
            self.position_rows = nn.Parameter(torch.zeros(C, R))
            self.position_columns = nn.Parameter(torch.zeros(C, R))
        else:
            self.position_bias = nn.Parameter(torch.zeros(C, C))

    def forward(
        self,
        x: Tensor,
        state: AFTState | None,
        v_first: _Places | None,
        *,
        starts: Tensor | None = None,
        implementation: str | None = None,
    ) -> tuple[Tensor, AFTState, _Places]:
        """See ``TimeMixing.forward``."""
        places = self.places(x, state, starts) if v_first is None else v_first
        k, v = self.key(x), self.value(x)
        if state is not None:
            k = torch.cat((state.keys.to(k.dtype), k), dim=1)
            v = torch.cat((state.values.to(v.dtype), v), dim=1)
        y = weighted_average(self.biases(places), places.hidden, k, v)
        if places.keep is not None:
            k, v = (each[:, each.shape[1] - places.keep :].clone() for each in (k, v))
        return self.output(sigmoid_gate(y, self.query(x))), AFTState(k, v, places.after), places

    def biases(self, places: _Places) -> Tensor:
        """w of each token and each that is there to be seen, [G, T, S + T]."""
        rows, columns = places.rows, places.columns
        if self.config.position_rank:
            return self.position_rows[rows] @ self.position_columns[columns].mT
        return self.position_bias[rows[..., None], columns[:, None]]

    def places(self, x: Tensor, state: AFTState | None, starts: Tensor | None) -> _Places:
        """What all layers share.

        Raises:
            ConfigError: a document is longer than the context.
        """
        B, T, _ = x.shape
        before = torch.zeros(B, dtype=torch.int64, device=x.device) if state is None else state.position
        cached = 0 if state is None else state.keys.shape[1]
        rows = positions(T, before, starts)
        longest = int(rows.max()) + 1
        if longest > self.config.context:
            raise ConfigError(
                f"a document has {longest} tokens, but AFT's learned position biases end at "
                f"{self.config.context}; shorten it, or train a model with a longer context"
            )
        after = rows[:, -1] + 1
        if starts is None and (state is None or bool((before == before[0]).all())):
            rows, before = rows[:1], before[:1]
        past = before[:, None] + torch.arange(-cached, 0, device=x.device)
        # Cached tokens of earlier documents have no position here; they are hidden.
        columns = torch.cat((past.clamp(min=0), rows), dim=1)
        keep = None if starts is None else int(after.max())
        return _Places(rows, columns, ~visible(rows, cached), after, keep)

    def state_shapes(self, streams: int) -> tuple[tuple[int, ...], ...]:
        """See ``RivalMixing.state_shapes``."""
        cache = (streams, ANY, self.config.width)
        return cache, cache, (streams,)

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Orthogonal matrices, small biases of positions, zeros before the residual sum."""
        D, C, R = self.config.width, self.config.context, self.config.position_rank
        values = {f"{name}.weight": orthogonal((D, D), generator) for name in ("query", "key", "value")}
        values["output.weight"] = torch.zeros(D, D)
        names = {"position_rows": (C, R), "position_columns": (C, R)} if R else {"position_bias": (C, C)}
        spread = 0.1 if R else 0.01
        return values | {
            name: spread * torch.randn(shape, generator=generator) for name, shape in names.items()
        }


def weighted_average(biases: Tensor, hidden: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The average of v_i with weights exp(k_i + w_ti), channel by channel.

    Args:
        biases: w, [G, T, S], where G is B, or 1 for all streams.
        hidden: [G, T, S] bool, which i do not count; one at least does for each t.
        k: [B, S, D].
        v: [B, S, D].

    Returns:
        [B, T, D], in the dtype of v.
    """
    with without_autocast(v.device.type):
        w, k, dtype = full_precision(biases).masked_fill(hidden, -torch.inf), full_precision(k), v.dtype
        v = full_precision(v)
        # What is subtracted cancels, and needs no gradient.
        top_w, top_k = w.detach().amax(-1, keepdim=True), k.detach().amax(1, keepdim=True)
        range_w = (top_w - w.detach()).masked_fill(hidden, 0).max()
        if range_w + (top_k - k.detach()).max() < _RANGE:
            y = _by_products(torch.exp(w - top_w), torch.exp(k - top_k), v)
        else:
            y = _by_softmax(w, k, v)
    return y.to(dtype)


def _by_products(w: Tensor, k: Tensor, v: Tensor) -> Tensor:
    both = torch.cat((k * v, k), dim=-1)
    if w.shape[0] == 1:
        # One product for all streams.
        B, S, channels = both.shape
        sums = (w[0] @ both.transpose(0, 1).reshape(S, -1)).view(-1, B, channels).transpose(0, 1)
    else:
        sums = w @ both
    numerator, denominator = sums.chunk(2, dim=-1)
    return numerator / denominator


def _by_softmax(w: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """For keys and biases of any range; [B, t, S, D] numbers for some tokens t at a time, computed again for
    the gradients."""
    B, S, D = k.shape
    tokens = max(1, _BLOCK // (B * S * D))
    blocks = [checkpoint(_softmax, part, k, v, use_reentrant=False) for part in w.split(tokens, dim=1)]
    return torch.cat(blocks, dim=1)


def _softmax(w: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (torch.softmax(w[..., None] + k[:, None], dim=2) * v[:, None]).sum(2)
