"""The memory of a batch's slots for sampling: parameters, random numbers, what was observed.

Everything is allocated once and stays where it is. A slot is written when a stream joins, and moved when the
batch closes ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.errors import ConfigError
from rookery.generate.batch.sampling import Needs, Observed, Rows, choose, precision
from rookery.generate.sampling import Sampler, SamplingParams

__all__ = ["SamplingSlots"]

_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "penalty_decay",
)
_LARGE = 2**62


class SamplingSlots:
    """The samplers of so many slots.

    Args:
        slots: S.
        vocab_size: N.
        device: where; 10 S N bytes and a little are taken there.
    """

    def __init__(self, slots: int, vocab_size: int, device: torch.device):
        self.vocab_size = vocab_size
        dtype = precision(device)
        # A column for each parameter, so that a stream is written by one copy from the host.
        self._numbers = torch.ones(slots, len(_NUMBERS), dtype=dtype, device=device)
        # top_k, temperature_last, seed, step.
        self._integers = torch.zeros(slots, 4, dtype=torch.int64, device=device)
        self._counts = torch.zeros(slots, vocab_size, dtype=dtype, device=device)
        self._seen = torch.zeros(slots, vocab_size, dtype=torch.bool, device=device)
        self._banned = torch.zeros_like(self._seen)

    def put(self, slot: int, sampler: Sampler) -> None:
        """Write a sampler into a slot; it is not used after that.

        Raises:
            ConfigError: a token that it bans or has observed is outside of the vocabulary.
        """
        values, params = sampler.to_dict(), sampler.params
        for what, tokens in (("observed", values["tokens"]), ("banned", params.banned_tokens)):
            if max(tokens, default=-1) >= self.vocab_size:
                raise ConfigError(
                    f"token {max(tokens)} is {what}, but the model has only {self.vocab_size} tokens"
                )
        self._numbers[slot] = torch.tensor([getattr(params, name) for name in _NUMBERS], dtype=torch.float64)
        seed = sampler.seed - 2**64 if sampler.seed >= 2**63 else sampler.seed
        integers = [min(params.top_k, _LARGE), int(params.temperature_last), seed, sampler.step]
        self._integers[slot] = torch.tensor(integers)
        for memory in (self._counts, self._seen, self._banned):
            memory[slot].zero_()
        if values["tokens"]:
            tokens = torch.tensor(values["tokens"], device=self._counts.device)
            counts = torch.tensor(values["counts"], dtype=torch.float64)
            self._counts[slot, tokens] = counts.to(self._counts)
            self._seen[slot, tokens] = True
        if params.banned_tokens:
            self._banned[slot, torch.tensor(params.banned_tokens, device=self._banned.device)] = True

    def take(self, slot: int, params: SamplingParams) -> Sampler:
        """The sampler of a slot, to go on elsewhere exactly.

        Args:
            slot: which.
            params: its parameters.
        """
        tokens = self._seen[slot].nonzero()[:, 0]
        *_, seed, step = self._integers[slot].tolist()
        return Sampler.from_dict(
            {
                "params": params.to_dict(),
                "seed": seed % 2**64,
                "step": step,
                "tokens": tokens.tolist(),
                "counts": self._counts[slot, tokens].tolist(),
            }
        )

    def move(self, source: int, target: int) -> None:
        """Copy a slot over another."""
        for memory in (self._numbers, self._integers, self._counts, self._seen, self._banned):
            memory[target].copy_(memory[source])

    def rows(self, count: int) -> Rows:
        """The parameters of the first slots, as views."""
        numbers = dict(zip(_NUMBERS, self._numbers[:count].unbind(1), strict=True))
        del numbers["penalty_decay"]
        top_k, temperature_last, _, _ = self._integers[:count].unbind(1)
        return Rows(**numbers, top_k=top_k, temperature_last=temperature_last != 0)

    def observed(self, count: int) -> Observed:
        """What the first slots have observed and ban, as views."""
        return Observed(self._counts[:count], self._seen[:count], self._banned[:count])

    def choose(self, logits: Tensor, needs: Needs) -> Tensor:
        """The next token [B] of each of the first slots, by logits [B, N]; nothing is written."""
        count = len(logits)
        _, _, seed, step = self._integers[:count].unbind(1)
        return choose(logits, self.rows(count), seed, step, needs, self.observed(count))

    def took(self, tokens: Tensor, needs: Needs) -> None:
        """Go to the next step with the chosen tokens [B] of the first slots.

        Where nobody has penalties, nothing is observed.
        """
        count = len(tokens)
        self._integers[:count, 3] += 1
        if needs.penalties:
            chosen = tokens.clamp(min=0)[:, None]
            counts = self._counts[:count]
            counts *= self._numbers[:count, _NUMBERS.index("penalty_decay"), None]
            counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=counts.dtype))
            self._seen[:count].scatter_(1, chosen, True)
