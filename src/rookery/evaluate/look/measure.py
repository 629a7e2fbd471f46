"""What is measured while a model reads a text: arrays, drawn by others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rookery.config import ModelConfig
from rookery.errors import ConfigError, DataError, StateError, TokenizerError
from rookery.evaluate.first_token import choose_first_token
from rookery.evaluate.look.influence import Influence, change, choose_changes, replacements
from rookery.evaluate.look.trace import FIXED_DECAY, Seen, decay_of_weights, half_lives, watching
from rookery.generate.language_model import LanguageModel
from rookery.generate.torch_backend import TorchBackend
from rookery.models import RWKV
from rookery.state import State
from rookery.tokenizers import Tokenizer

__all__ = ["Inside", "Surprise", "effective_rank", "look_inside", "start_token", "state_norms", "text_tokens"]

# Tokens that go through the model at once, and logits that are held, at most.
_SPAN, _LOGITS = 512, 1 << 26


@dataclass(frozen=True, kw_only=True)
class Surprise:
    """How well each token was predicted."""

    bits: np.ndarray
    """[T] float32: -log2 of the probability that the model gave the token. NaN where nothing was before
    it."""

    rank: np.ndarray
    """[T] int: 1 for the likeliest token; 0 where nothing was before it."""

    entropy: np.ndarray
    """[T] float32, bits: the surprise that the model expected."""

    top_ids: np.ndarray
    """[T, C] int: the likeliest tokens in its place."""

    top_probabilities: np.ndarray
    """[T, C] float32."""


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What was seen of a model while it read a text of T tokens, P times looked at."""

    config: ModelConfig
    """The model's shape."""

    tokens: np.ndarray
    """[T] int: the text."""

    start: int | None
    """The token that was read before the text; None: the first token was not predicted."""

    surprise: Surprise
    """Of every token."""

    read: np.ndarray
    """[P] int: tokens of the text that had been read at each look."""

    half_lives: np.ndarray
    """[L, P, A] float32, tokens: of each key channel's decay; P is 1 where decays are weights (RWKV-4, 5)."""

    state_norm: np.ndarray
    """[P, L, H] float32: Frobenius norms of the heads' states; RWKV-4: [P, L, 1], of numerator /
    denominator."""

    state_rank: np.ndarray | None
    """[P, L, H] float32: effective ranks of the heads' states; None for RWKV-4, whose state is a vector."""

    learning_rate: np.ndarray | None
    """[P, L, H] float32: RWKV-7's in-context learning rate; None for other versions."""

    influence: Influence
    """Of changed tokens."""

    @property
    def bits_per_token(self) -> float:
        """The mean surprise of the tokens that were predicted; NaN if none was."""
        known = self.surprise.bits[~np.isnan(self.surprise.bits)]
        return float(known.mean()) if len(known) else math.nan


def text_tokens(tokenizer: Tokenizer | None, text: str, *, ids: bool = False) -> list[int]:
    """The tokens of a text.

    Args:
        tokenizer: the model's.
        text: what to encode; with ``ids`` whole numbers, divided by spaces or commas.

    Raises:
        TokenizerError: there is no tokenizer, or it cannot encode the text.
        DataError: the text is empty, or holds what is no id.
    """
    if not ids and tokenizer is None:
        raise TokenizerError(
            "no tokenizer is known for this model; give one (--tokenizer world, bytes, or a "
            "tokenizer.json), or "
            "token ids in place of text (--ids)"
        )
    if ids:
        words = text.replace(",", " ").split()
        wrong = next((word for word in words if not word.isdecimal()), None)
        if wrong is not None:
            raise DataError(f"{wrong!r} is no token id; ids are whole numbers, divided by spaces")
        tokens = [int(word) for word in words]
    else:
        assert tokenizer is not None
        tokens = tokenizer.encode(text)
    if not tokens:
        raise DataError("the text is empty; there is nothing to look at")
    return tokens


def start_token(model: LanguageModel) -> int | None:
    """What is read before a text, so that its first token is predicted: end of text, or a newline.

    None where the model has no tokenizer, or one without both: then the first token is not predicted.
    """
    try:
        return choose_first_token(model).id
    except TokenizerError:
        return None


def effective_rank(matrices: Tensor) -> Tensor:
    """exp of the entropy of the singular values, as shares of their sum (Roy and Vetterli 2007).

    Args:
        matrices: [..., K, V].

    Returns:
        [...]: from 1 (an outer product) to min(K, V) (all directions alike); 0 for a matrix of zeros.
    """
    values = torch.linalg.svdvals(matrices.double())
    total = values.sum(-1, keepdim=True)
    shares = values / total.clamp(min=torch.finfo(torch.float64).tiny)
    rank = torch.exp(torch.special.entr(shares).sum(-1))
    return torch.where(total[..., 0] > 0, rank, 0.0)


def state_norms(wkv: Tensor) -> Tensor:
    """[L, H] norms of the state of one stream: of its heads, [L, 1, H, K, V], or RWKV-4's [L, 1, 3, A]."""
    if wkv.dim() == 4:
        numerator, denominator, _ = wkv[:, 0].double().unbind(1)
        # The scale of both is arbitrary; what the state stands for is their quotient.
        return (numerator / denominator.clamp(min=1e-300)).norm(dim=-1, keepdim=True)
    return wkv[:, 0].double().flatten(-2).norm(dim=-1)


def look_inside(
    model: LanguageModel | RWKV,
    tokens: Sequence[int],
    *,
    start: int | None = None,
    alternatives: int = 5,
    looks: int = 160,
    changes: int = 16,
    seed: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Inside:
    """Read a text and measure.

    Args:
        model: an RWKV of any version, or a language model that runs one in torch.
        tokens: the text.
        start: a token to read before it, so that the first one is predicted.
        alternatives: likeliest tokens to keep at every place.
        looks: most places, evenly over the text, at which states, decays and learning rates are looked at.
        changes: most tokens to replace, one at a time, to see how far that is felt.
        seed: of what they are replaced with.
        advance: is told how many of all tokens have been read.

    Raises:
        ConfigError: the model does not run in torch; a token is outside of the vocabulary; options out of
        range.
        DataError: there are no tokens.
        StateError: the model's weights hold NaN or infinity, or it overflowed.
    """
    network = _network(model)
    if looks < 1 or alternatives < 1 or changes < 0:
        raise ConfigError("looks and alternatives must be 1 or more, and changes 0 or more")
    if not len(tokens):
        raise DataError("the text is empty; there is nothing to look at")
    text = np.array(tokens, np.int64)
    beyond = text[(text < 0) | (text >= network.config.vocab_size)]
    if len(beyond):
        raise ConfigError(
            f"token {beyond[0]} is outside of the vocabulary of {network.config.vocab_size}; was the text "
            "encoded "
            "by another model's tokenizer?"
        )
    positions, reach = choose_changes(text, network.config.vocab_size, changes)
    reader = _Reader(network, text, looks, set(positions.tolist()), alternatives)
    total = len(text) + 2 * len(positions) * reach
    with torch.inference_mode():
        reader.read(start, lambda done: advance(done, total))
        done = len(text)

        def changed(count: int) -> None:
            nonlocal done
            done += count
            advance(done, total)

        influence = change(
            network,
            text,
            positions,
            replacements(text, positions, network.config.vocab_size, seed),
            [reader.states[position] for position in positions.tolist()],
            reach,
            changed,
        )
    return reader.result(start, influence)


def _network(model: LanguageModel | RWKV) -> RWKV:
    if isinstance(model, RWKV):
        return model
    if not isinstance(model.backend, TorchBackend):
        raise ConfigError("looking inside needs the torch backend: rookery.load(path, backend='torch')")
    return model.backend.model


class _Reader:
    """Reads the text span by span with a carried state, and keeps what it sees at the ends of spans."""

    def __init__(self, model: RWKV, text: np.ndarray, looks: int, keep: set[int], alternatives: int):
        self.model = model
        self.text = text
        self.keep = keep
        self.alternatives = min(alternatives, model.config.vocab_size)
        T = len(text)
        self.looked = np.unique(np.linspace(T, 1, min(looks, T)).round().astype(np.int64))
        self.states: dict[int, State[Tensor]] = {}
        self.seen: list[list[Seen]] = []
        self.norms: list[Tensor] = []
        self.ranks: list[Tensor] = []
        self.scores: list[tuple[Tensor, ...]] = []

    def read(self, start: int | None, advance: Callable[[int], None]) -> None:
        model, text = self.model, self.text
        device = model.emb.weight.device
        ids = torch.from_numpy(text).to(device)
        state, last = model.initial_state(), None
        if start is not None:
            logits, state = model(torch.tensor([[start]], device=device), state)
            last = logits[0, -1]
        looked = set(self.looked.tolist())
        longest = max(1, min(_SPAN, _LOGITS // model.config.vocab_size))
        ends = looked | self.keep | set(range(0, len(text), longest)) | {len(text)}
        ends.discard(0)
        begin = 0
        if 0 in self.keep:
            self.states[0] = state
        with watching(model) as seen:
            for end in sorted(ends):
                logits, state = model(ids[None, begin:end], state)
                self._score(ids[begin:end], logits[0], last)
                last = logits[0, -1]
                if end in looked:
                    self._look(seen, state)
                if end in self.keep:
                    self.states[end] = state
                begin = end
                advance(end)

    def _score(self, ids: Tensor, logits: Tensor, last: Tensor | None) -> None:
        """Judge each token by the logits before it; the first of all has none without a start."""
        if not torch.isfinite(logits).all():
            raise StateError(
                "the model's logits hold NaN or infinity: its weights do (`rookery inspect --check` says "
                "so), or it "
                "overflowed; if it runs in float16, try float32"
            )
        before = logits[:-1] if last is None else torch.cat([last[None], logits[:-1]])
        missing = len(ids) - len(before)
        log_p = F.log_softmax(before.float(), -1)
        own = log_p.gather(1, ids[missing:, None])
        top, top_ids = log_p.topk(self.alternatives)
        parts = (
            -own[:, 0] / math.log(2),
            1 + (log_p > own).sum(-1),
            -(log_p.exp() * log_p.clamp(min=-1e30)).sum(-1) / math.log(2),
            top_ids,
            top.exp(),
        )
        if missing:
            fill = (math.nan, 0, math.nan, 0, 0.0)
            parts = tuple(
                torch.cat([part.new_full((missing, *part.shape[1:]), value), part])
                for part, value in zip(parts, fill, strict=True)
            )
        self.scores.append(tuple(part.cpu() for part in parts))

    def _look(self, seen: list[Seen], state: State[Tensor]) -> None:
        if self.model.config.version not in FIXED_DECAY:
            self.seen.append(list(seen))
        self.norms.append(state_norms(state.wkv).cpu())
        if self.model.config.version != "4":
            self.ranks.append(effective_rank(state.wkv[:, 0]).cpu())

    def result(self, start: int | None, influence: Influence) -> Inside:
        bits, rank, entropy, top_ids, top_probabilities = (
            torch.cat(parts).numpy() for parts in zip(*self.scores, strict=True)
        )
        if self.seen:
            decays = torch.stack([torch.stack([layer.log_decay for layer in look]) for look in self.seen], 1)
        else:
            decays = torch.stack([decay_of_weights(block.att) for block in self.model.blocks])[:, None]
        rates = None
        if self.model.config.version == "7":
            rates = torch.stack([torch.stack([_rate(layer) for layer in look]) for look in self.seen])
        return Inside(
            config=self.model.config,
            tokens=self.text,
            start=start,
            surprise=Surprise(
                bits=bits.astype(np.float32),
                rank=rank,
                entropy=entropy.astype(np.float32),
                top_ids=top_ids,
                top_probabilities=top_probabilities.astype(np.float32),
            ),
            read=self.looked,
            half_lives=half_lives(decays.detach()).float().cpu().numpy(),
            state_norm=torch.stack(self.norms).float().numpy(),
            state_rank=torch.stack(self.ranks).float().numpy() if self.ranks else None,
            learning_rate=None if rates is None else rates.float().cpu().numpy(),
            influence=influence,
        )


def _rate(layer: Seen) -> Tensor:
    assert layer.learning_rate is not None
    return layer.learning_rate
