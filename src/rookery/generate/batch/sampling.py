"""Sampling for many streams at once, on the device where the logits are.

The steps, their order and the random numbers are those of ``rookery.generate.sampling``, which defines them;
here they are torch operations over rows of a batch, each row with its own parameters. Nothing waits for the
device and no shape depends on values, so that all of it can be recorded as a CUDA graph.

Numbers are float64, as in the definition, so that both choose the same token for the same logits and seed;
on devices without it (MPS) float32. Two things are done otherwise than in numpy: what truncation leaves out
stays in its place with the weight 0, and what the definition reports as an error (NaN or infinity among the
logits, no token left) is the token ``NO_TOKEN``, since a device cannot raise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rookery.generate.sampling import SamplingParams

__all__ = ["NO_TOKEN", "Needs", "Observed", "Rows", "choose", "precision", "scores", "uniform", "weights"]

NO_TOKEN = -1
"""In place of a token where there is nothing to choose from."""


class Needs(NamedTuple):
    """Which steps a batch needs: what no stream asks for is left out of the work."""

    penalties: bool = False
    """Penalties or bans."""

    draws: bool = False
    """Some stream does not always take the likeliest token."""

    ranks: bool = False
    """Some such stream has top-k or top-p, for which scores are sorted."""

    @classmethod
    def of(cls, params: SamplingParams) -> Needs:
        """What one stream needs."""
        penalties = params.presence_penalty != 0 or params.frequency_penalty != 0
        draws = params.temperature > 0 and params.top_k != 1
        return cls(
            penalties or params.repetition_penalty != 1 or bool(params.banned_tokens),
            draws,
            draws and (params.top_k > 0 or params.top_p < 1),
        )

    def __or__(self, other: tuple[object, ...]) -> Needs:
        """What two streams need together."""
        return Needs(*(bool(mine or its) for mine, its in zip(self, other, strict=True)))


class Rows(NamedTuple):
    """The parameters of the streams of a batch, each [B]; their meanings are those of ``SamplingParams``."""

    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    presence_penalty: Tensor
    frequency_penalty: Tensor
    repetition_penalty: Tensor
    top_k: Tensor
    """int64."""
    temperature_last: Tensor
    """bool."""


class Observed(NamedTuple):
    """What penalties and bans go by."""

    counts: Tensor
    """[B, N]: the decayed count of each token."""
    seen: Tensor
    """[B, N] bool: whether it was observed at all; a count may have faded to 0."""
    banned: Tensor
    """[B, N] bool."""


def precision(device: torch.device) -> torch.dtype:
    """What sampling computes in."""
    return torch.float32 if device.type == "mps" else torch.float64


def scores(logits: Tensor, rows: Rows, observed: Observed | None) -> Tensor:
    """Steps 1 to 3: the logits [B, N] after penalties and bans, in float64."""
    x = logits.to(rows.temperature.dtype)
    if observed is None:
        return x
    repetition = rows.repetition_penalty[:, None]
    fading = rows.frequency_penalty[:, None] * observed.counts + rows.presence_penalty[:, None]
    seen = torch.where(x > 0, x / repetition, x * repetition) - fading
    return torch.where(observed.seen, seen, x).masked_fill(observed.banned, -torch.inf)


def weights(x: Tensor, rows: Rows, *, ranks: bool) -> Tensor:
    """Steps 4 to 7: what is drawn from.

    Args:
        x: scores [B, N]; of a row without a finite largest score the result means nothing.
        rows: parameters.
        ranks: whether a row has top-k or top-p.

    Returns:
        [B, N] the weight of each token relative to the likeliest; 0 where it was truncated.
    """
    largest, likeliest = x.max(1, keepdim=True).values, x.argmax(1, keepdim=True)
    x = x - largest
    first = torch.where(rows.temperature_last, 1.0, rows.temperature)
    if ranks:
        kept, weight = _ranked(x, first, rows)
    else:
        weight = _weigh(x, first)
        kept = torch.ones_like(x, dtype=torch.bool)
    kept &= weight >= rows.min_p[:, None]
    # Where rounding made weights equal, the likeliest that is left may be another.
    x = x.masked_fill(~kept, -torch.inf)
    last = _weigh(x - x.max(1, keepdim=True).values, rows.temperature)
    weight = torch.where(rows.temperature_last[:, None], last, weight.masked_fill(~kept, 0.0))
    greedy = ((rows.temperature == 0) | (rows.top_k == 1))[:, None]
    only = torch.zeros_like(weight).scatter_(1, likeliest, 1.0)
    return torch.where(greedy, only, weight)


def choose(
    logits: Tensor, rows: Rows, seed: Tensor, step: Tensor, needs: Needs, observed: Observed | None = None
) -> Tensor:
    """One token for each row.

    Args:
        logits: [B, N], any float type.
        rows: parameters.
        seed: [B] int64, the bits of each stream's seed.
        step: [B] int64, how many tokens each stream has drawn.
        needs: what the rows need, or more.
        observed: used where ``needs.penalties``.

    Returns:
        [B] int64; ``NO_TOKEN`` where logits are NaN or +inf, or every token has the score -inf.
    """
    x = scores(logits, rows, observed if needs.penalties else None)
    if needs.draws:
        running = weights(x, rows, ranks=needs.ranks).cumsum(1)
        total = running[:, -1:].contiguous()
        at = total * uniform(seed, step, x.dtype)[:, None]
        found = torch.searchsorted(running, at, right=True)
        # The product may be rounded up to the sum, which the last token that has a weight reaches.
        token = torch.minimum(found, torch.searchsorted(running, total))[:, 0].clamp(max=x.shape[1] - 1)
    else:
        token = x.argmax(1)
    # Of the logits, not the scores: what is banned is looked at too. The maximum is NaN where one is.
    usable = (logits.max(1).values < torch.inf) & (x.max(1).values > -torch.inf)
    return torch.where(usable, token, NO_TOKEN)


def uniform(seed: Tensor, step: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Output number ``step`` of splitmix64 seeded with ``seed``, as a number in [0, 1).

    A function of the two alone: a stream's numbers depend neither on the streams beside it nor on its slot,
    and a recorded graph needs no generator. int64 wraps around like the unsigned words of the definition.
    """
    z = seed + (step + 1) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shifted(z, 31)
    digits = 53 if dtype == torch.float64 else 24
    return _shifted(z, 64 - digits).to(dtype) * 2.0**-digits


def _ranked(x: Tensor, temperature: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Steps 5 and 6, on scores up to 0: what stays [B, N] bool, and the weights of what top-k kept."""
    size = x.shape[1]
    ranked, order = x.sort(dim=1, descending=True, stable=True)
    limit = torch.where(rows.top_k > 0, rows.top_k.clamp(max=size), size)[:, None]
    kept = _largest(x, limit, ranked.gather(1, limit - 1))
    weight = _weigh(x, temperature).masked_fill(~kept, 0.0)
    ranked = weight.gather(1, order)
    running = ranked.cumsum(1)
    wanted = rows.top_p[:, None] * running[:, -1:]
    count = torch.searchsorted(running, wanted.contiguous()).clamp(max=size - 1) + 1
    nucleus = _largest(weight, count, ranked.gather(1, count - 1))
    return kept & (nucleus | (rows.top_p >= 1)[:, None]), weight


def _largest(values: Tensor, count: Tensor, cut: Tensor) -> Tensor:
    """[B, N] bool: the ``count`` [B, 1] largest, of equals the first; ``cut`` [B, 1] is the smallest."""
    above, equal = values > cut, values == cut
    return above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))


def _weigh(x: Tensor, temperature: Tensor) -> Tensor:
    # Divided by the least normal number, all but the likeliest get the weight 0; by 0, it would be NaN.
    return torch.exp(x / temperature.clamp(min=torch.finfo(x.dtype).tiny)[:, None])


def _shifted(z: Tensor, bits: int) -> Tensor:
    """z >> bits, as an unsigned number."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
