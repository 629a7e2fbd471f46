"""From logits to a token: the definition that every backend of this project follows.

One step, for logits x [N]:

1. **Repetition penalty** r, for each observed token: x / r where x > 0, x * r where not
   (CTRL, Keskar et al. 2019, section 4.1).
2. **Presence and frequency penalty**, for each observed token: x -= presence + frequency * count.
   ``observe`` multiplies all counts by ``penalty_decay`` and then adds 1 to the count of its token: the
   frequency penalty fades, the presence penalty stays.
3. **Bans**: x = -inf.
4. **Temperature** t: weights w = exp((x - max x) / t). With t = 0 the largest x is the token.
5. **Top-k**: the k largest weights stay.
6. **Top-p**: of these, the fewest largest that together have at least ``top_p`` of their sum stay.
7. **Min-p**: of these, those with w >= ``min_p`` stay (the largest weight is 1).
8. **Draw**: with u the uniform number of this step, the first candidate in ascending order of ids at which
   the running sum of the weights exceeds u times their whole sum.

Equal weights rank by id, the lower first, so that ``top_k=1`` and ``temperature=0`` name the same token.
All of it is float64 arithmetic. The uniform number of step n (0, 1, ...; one for each call of ``sample``) is
the n-th output of splitmix64 seeded with ``seed`` (Steele, Lea and Flood 2014), its upper 53 bits times
2**-53. It has no hidden state: a saved or copied stream goes on exactly, and C++ or a GPU can draw the same.

Other software orders this differently. Most of it (transformers, vLLM) truncates after the temperature, as
here. The `rwkv` package truncates before it: ``temperature_last=True`` does that. That package also measures
top-p on the whole distribution where top-k is set as well, keeps every token that ties with the last one
kept, and leaves blanks and digits out of the frequency penalty.

``Sampler.candidates`` is this definition in numpy. ``sample`` has C++ do the same for float32 logits
(``csrc/sampling.h``): 65536 of them would take numpy milliseconds, as long as a small model. Sums and
exponentials differ there by their rounding, some 1e-15, and a weight under 2**-1022 is 0.
"""

from __future__ import annotations

import copy
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from rookery.errors import ConfigError, MissingExtraError, StateError, find

__all__ = ["Implementation", "Sampler", "SamplingParams", "sample_batch"]


# None where it was not built: then the definition samples.
_engine: Any = find("rookery.native._engine")

Implementation = Literal["native", "reference"]

_WORD = 2**64
_LARGE = 2**62


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose tokens, and when to stop. See the module for the order in which this applies.

    Raises:
        ConfigError: a value is out of range.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token always."""

    top_k: int = 0
    """Keep this many of the likeliest tokens; 0 keeps all."""

    top_p: float = 0.85
    """Keep the fewest likeliest tokens that have this much probability; 1 keeps all."""

    min_p: float = 0.0
    """Keep tokens at least this probable relative to the likeliest; 0 keeps all."""

    temperature_last: bool = False
    """Truncate on the distribution before the temperature, as the `rwkv` package does."""

    presence_penalty: float = 0.0
    """Subtracted from the logit of every observed token."""

    frequency_penalty: float = 0.0
    """Subtracted from the logit of every observed token, times its decayed count."""

    penalty_decay: float = 0.996
    """Multiplies all counts at each observed token; 1 never forgets. The `rwkv` package's default."""

    repetition_penalty: float = 1.0
    """Divides positive logits of observed tokens and multiplies negative ones; 1 changes nothing."""

    banned_tokens: tuple[int, ...] = ()
    """Ids that are never chosen."""

    seed: int | None = None
    """0 to 2**64 - 1: the same seed gives the same tokens for the same logits. None takes a random one."""

    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings."""

    max_tokens: int | None = 256
    """The text ends after this many tokens; None: at the end of text or at a stop string."""

    def __post_init__(self) -> None:
        for name, (kind, low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not _in_range(value, kind, low, high):
                raise ConfigError(f"{name} must be {_describe(kind, low, high)}, not {value!r}")
            object.__setattr__(self, name, kind(value))
        if not isinstance(self.temperature_last, bool):
            raise ConfigError(f"temperature_last must be True or False, not {self.temperature_last!r}")
        self._set_tuple(
            "banned_tokens", "ids, each 0 or more", lambda t: isinstance(t, _ACCEPTED[int]) and t >= 0
        )
        self._set_tuple("stop", "strings that are not empty", lambda s: isinstance(s, str) and s != "")
        object.__setattr__(self, "banned_tokens", tuple(int(token) for token in self.banned_tokens))

    def _set_tuple(self, name: str, wanted: str, fits: Any) -> None:
        value = getattr(self, name)
        # A string is a sequence too, and as a list of one-letter stops it would be a trap.
        if isinstance(value, str | bytes) or not isinstance(value, list | tuple | set | frozenset):
            raise ConfigError(f"{name} must be a tuple of {wanted}, not {value!r}")
        for item in value:
            if not fits(item):
                raise ConfigError(f"{name} must hold {wanted}, not {item!r}")
        object.__setattr__(self, name, tuple(value))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` takes them back."""
        values = asdict(self)
        return values | {"banned_tokens": list(self.banned_tokens), "stop": list(self.stop)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingParams:
        """The inverse of ``to_dict``; what is left out has its default.

        Raises:
            ConfigError: a field is unknown or out of range.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"there is no sampling parameter {unknown[0]!r}; there are {', '.join(known)}")
        return cls(**values)


_FINITE = float(np.finfo(np.float64).max)

# Parameter -> type, smallest and largest value.
_RANGES: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0.0, _FINITE),
    "top_k": (int, 0, _FINITE),
    "top_p": (float, 0.0, 1.0),
    "min_p": (float, 0.0, 1.0),
    "presence_penalty": (float, -1e3, 1e3),
    "frequency_penalty": (float, -1e3, 1e3),
    "penalty_decay": (float, 0.0, 1.0),
    "repetition_penalty": (float, 1e-3, 1e3),
    "seed": (int, 0, _WORD - 1),
    "max_tokens": (int, 1, _FINITE),
}
_OPTIONAL = ("seed", "max_tokens")
_ACCEPTED: dict[type, tuple[type, ...]] = {
    int: (int, np.integer),
    float: (int, float, np.integer, np.floating),
}


def _in_range(value: Any, kind: type, low: float, high: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, _ACCEPTED[kind]):
        return False
    return low <= kind(value) <= high


def _describe(kind: type, low: float, high: float) -> str:
    number = "an integer" if kind is int else "a number"
    if high == _FINITE:
        return f"{number}, {low:g} or more"
    return f"{number} from {low:g} to {high:g}" if high < _WORD - 1 else f"{number} from 0 to 2**64 - 1"


class Sampler:
    """Chooses the tokens of one stream, and remembers what the penalties need.

        sampler = Sampler(SamplingParams(temperature=0.8, seed=1))
        token = sampler.sample(logits)
        sampler.observe(token)

    ``params`` may be replaced between two tokens; the seed is the one that the sampler began with.

    Attributes:
        params: the parameters in force.
        seed: the seed in use, ``params.seed`` or a random one.
        step: tokens sampled so far.
    """

    def __init__(self, params: SamplingParams):
        self.params = params
        self.seed = _seed(params)
        self.step = 0
        # The observed tokens in the order in which they first came, and the decayed count of each.
        self._slot: dict[int, int] = {}
        self._tokens = np.empty(0, dtype=np.int64)
        self._counts = np.empty(0, dtype=np.float64)

    def sample(self, logits: np.ndarray, *, implementation: Implementation | None = None) -> int:
        """Choose one token and go to the next step.

        Args:
            logits: [N], any float type; left as it is.
            implementation: ``"native"`` takes the logits as float32 to C++, ``"reference"`` is the definition
                in numpy; by default C++ for float32 logits where it was built, else the definition.

        Raises:
            StateError: the logits have NaN or +inf.
            ConfigError: every token is banned, or an id is outside the vocabulary.
            MissingExtraError: C++ is asked for and was not built.
        """
        if implementation not in (None, "native", "reference"):
            raise ConfigError(f"there is no implementation {implementation!r}; there are native, reference")
        logits = np.asarray(logits)
        if implementation is None:
            built = _engine is not None
            implementation = "native" if built and logits.dtype == np.float32 else "reference"
        if implementation == "native":
            if _engine is None:
                raise MissingExtraError(
                    "the native engine was not built: pip install . in the source's folder"
                )
            _check_shape(logits)
            return sample_batch([self], logits[None], threads=1)[0]
        tokens, weights = self.candidates(logits)
        uniform = _uniform(self.seed, self.step)
        self.step += 1
        if len(tokens) == 1:
            return int(tokens[0])
        total = np.cumsum(weights)
        return int(tokens[np.searchsorted(total, uniform * total[-1], side="right")])

    def candidates(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What ``sample`` draws from: steps 1 to 7.

        Returns:
            The ids that are left in ascending order, int64 [M], and their weights relative to the likeliest,
            float64 [M]. A weight can be 0; then its token is never drawn.

        Raises:
            StateError, ConfigError: as ``sample``.
        """
        params = self.params
        scores = self._scores(logits)
        likeliest = int(scores.argmax())
        if scores[likeliest] == -np.inf:
            raise ConfigError(
                f"no token is left to choose: all {len(scores)} are banned or have a logit of -inf; "
                f"banned_tokens has {len(params.banned_tokens)} ids"
            )
        if params.temperature == 0 or params.top_k == 1:
            return np.array([likeliest]), np.ones(1)
        scores -= scores[likeliest]
        tokens = _all_ids(len(scores))
        if 0 < params.top_k < len(scores):
            cut = np.partition(scores, len(scores) - params.top_k)[len(scores) - params.top_k]
            tokens = _largest(scores, params.top_k, cut)
            scores = scores[tokens]
        weights = _weights(scores, 1.0 if params.temperature_last else params.temperature)
        if params.top_p < 1:
            kept = _nucleus(weights, params.top_p)
            tokens, scores, weights = tokens[kept], scores[kept], weights[kept]
        if params.min_p > 0:
            kept = weights >= params.min_p
            tokens, scores, weights = tokens[kept], scores[kept], weights[kept]
        if params.temperature_last:
            # Relative to the likeliest that is left: where rounding made weights equal, it may be another.
            weights = _weights(scores - scores.max(), params.temperature)
        return tokens, weights

    def observe(self, token: int) -> None:
        """Count a token for the penalties: one that was generated, or of a prompt if that is to count."""
        if token < 0:
            raise ConfigError(f"{token} is no token")
        self._counts *= self.params.penalty_decay
        slot = self._slot.setdefault(int(token), len(self._slot))
        if slot == len(self._tokens):
            self._tokens = np.append(self._tokens, int(token))
            self._counts = np.append(self._counts, 0.0)
        self._counts[slot] += 1

    def fork(self, *, seed: int | None = None) -> Sampler:
        """A second sampler that goes on from here by itself.

        Args:
            seed: draws of its own from the next step on; by default both draw the same for the same logits.

        Raises:
            ConfigError: the seed is out of range.
        """
        other = copy.copy(self)
        if seed is not None:
            other.seed = _seed(SamplingParams(seed=seed))
        other._slot = self._slot.copy()
        other._tokens, other._counts = self._tokens.copy(), self._counts.copy()
        return other

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` takes them back, to go on exactly."""
        return {
            "params": self.params.to_dict(),
            "seed": self.seed,
            "step": self.step,
            "tokens": self._tokens.tolist(),
            "counts": self._counts.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sampler:
        """The inverse of ``to_dict``.

        Raises:
            StateError: the values are not those of a sampler.
        """
        try:
            sampler = cls(SamplingParams.from_dict(values["params"]))
            sampler.seed = int(values["seed"])
            sampler.step = int(values["step"])
            sampler._tokens = np.array(values["tokens"], dtype=np.int64)
            sampler._counts = np.array(values["counts"], dtype=np.float64)
            sampler._slot = {token: slot for slot, token in enumerate(sampler._tokens.tolist())}
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"not the state of a sampler: {error!r}") from error
        if not sampler._tokens.shape == sampler._counts.shape == (len(sampler._slot),):
            raise StateError("not the state of a sampler: it needs one count for each observed token")
        if sampler.step < 0 or not 0 <= sampler.seed < _WORD or (sampler._tokens < 0).any():
            raise StateError("not the state of a sampler: the seed, the step or a token is out of range")
        return sampler

    def _scores(self, logits: np.ndarray) -> np.ndarray:
        """Steps 1 to 3 on a float64 copy of the logits."""
        params = self.params
        scores = np.array(logits, dtype=np.float64)
        _check_shape(scores)
        # The maximum is NaN where any logit is.
        if not scores.max() < np.inf:
            bad = int(np.flatnonzero(~(scores < np.inf))[0])
            raise StateError(
                f"logit {bad} of {len(scores)} is {scores[bad]}: the weights or the state hold NaN, or the "
                f"model overflowed; if it ran in float16, try float32"
            )
        self._check_ids(self._tokens, "observed", len(scores))
        seen = scores[self._tokens]
        if params.repetition_penalty != 1:
            seen = np.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
        scores[self._tokens] = seen - (params.presence_penalty + params.frequency_penalty * self._counts)
        if params.banned_tokens:
            self._check_ids(params.banned_tokens, "banned", len(scores))
            scores[np.array(params.banned_tokens)] = -np.inf
        return scores

    def _stream(self) -> tuple[Any, ...]:
        """What C++ needs to know of the next step."""
        return _native_options(self.params), self._tokens, self._counts, self.seed, self.step % _WORD

    @staticmethod
    def _check_ids(tokens: np.ndarray | Sequence[int], what: str, vocab_size: int) -> None:
        largest = np.max(tokens, initial=-1)
        if largest >= vocab_size:
            raise ConfigError(f"token {largest} is {what}, but the model has only {vocab_size} tokens")


def sample_batch(samplers: Sequence[Sampler], logits: np.ndarray, *, threads: int | None = None) -> list[int]:
    """The next token of each of several streams, as ``Sampler.sample`` of each; in one call of C++.

    Args:
        samplers: B of them, no one twice.
        logits: [B, N], taken as float32; left as they are.
        threads: of the CPU; by default one for a single stream, and all cores for several.

    Raises:
        StateError, ConfigError: as ``Sampler.sample``, for the first stream that has one. Then no sampler has
            gone to its next step, and each may be asked by itself.
    """
    rows = np.ascontiguousarray(logits, dtype=np.float32)
    if rows.ndim != 2 or len(rows) != len(samplers) or rows.shape[1] == 0:
        raise ConfigError(
            f"{len(samplers)} samplers take logits [{len(samplers)}, N], not the shape {rows.shape}"
        )
    if len(set(map(id, samplers))) != len(samplers):
        raise ConfigError("a sampler is one stream, and was given twice")
    if _engine is None:
        return _sample_by_definition(samplers, rows)
    if threads is None:
        threads = 1 if len(samplers) == 1 else int(_engine.default_threads())
    if not 1 <= threads <= _engine.MAX_THREADS:
        raise ConfigError(f"threads must be 1 to {_engine.MAX_THREADS}, not {threads}")
    tokens = _engine.sample(rows, [sampler._stream() for sampler in samplers], threads)
    for sampler, row, token in zip(samplers, rows, tokens, strict=True):
        if token < 0:
            # The definition says what is wrong.
            sampler.candidates(row)
            raise AssertionError("C++ refuses what the definition takes")
    for sampler in samplers:
        sampler.step += 1
    return tokens


def _sample_by_definition(samplers: Sequence[Sampler], rows: np.ndarray) -> list[int]:
    steps = [sampler.step for sampler in samplers]
    try:
        pairs = zip(samplers, rows, strict=True)
        return [sampler.sample(row, implementation="reference") for sampler, row in pairs]
    except (ConfigError, StateError):
        for sampler, step in zip(samplers, steps, strict=True):
            sampler.step = step
        raise


@lru_cache(maxsize=256)
def _native_options(params: SamplingParams) -> Any:
    return _engine.SamplingOptions(
        temperature=params.temperature,
        # Whatever is larger than a vocabulary keeps all, and bans nothing that is there.
        top_k=min(params.top_k, _LARGE),
        top_p=params.top_p,
        min_p=params.min_p,
        temperature_last=params.temperature_last,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        banned=[min(token, _LARGE) for token in params.banned_tokens],
    )


def _check_shape(logits: np.ndarray) -> None:
    if logits.ndim != 1 or not len(logits):
        raise ConfigError(f"the sampler takes the logits of one token, [N], not the shape {logits.shape}")


@lru_cache(maxsize=4)
def _all_ids(vocab_size: int) -> np.ndarray:
    # Kept, because making it takes as long as a whole top-k.
    tokens = np.arange(vocab_size)
    tokens.flags.writeable = False
    return tokens


def _weights(scores: np.ndarray, temperature: float) -> np.ndarray:
    # A temperature near 0 sends the quotient to -inf, which is the weight 0 that it should be.
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(scores / temperature)


def _largest(values: np.ndarray, count: int, cut: float) -> np.ndarray:
    """Positions of the ``count`` largest values, ascending; ``cut`` is the smallest of these values."""
    above = np.flatnonzero(values > cut)
    equal = np.flatnonzero(values == cut)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Positions of the fewest largest weights that have ``top_p`` of the sum, ascending; at least one."""
    wanted = top_p * weights.sum()
    # Sorting all of 65536 weights takes 4 ms. Those of a trained model are nearly all tiny: sort the others.
    for floor in (1e-2, 1e-4, 0.0):
        ranked = np.sort(weights[weights >= floor])[::-1]
        total = np.cumsum(ranked)
        if total[-1] >= wanted:
            break
    count = min(int(np.searchsorted(total, wanted)) + 1, len(ranked))
    return _largest(weights, count, ranked[count - 1])


def _seed(params: SamplingParams) -> int:
    return secrets.randbits(64) if params.seed is None else params.seed


def _uniform(seed: int, step: int) -> float:
    """Output number ``step`` of splitmix64 seeded with ``seed``, as a number in [0, 1)."""
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) % _WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _WORD
    return math.ldexp((z ^ (z >> 31)) >> 11, -53)
