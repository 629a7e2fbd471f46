"""A model in the native engine: weights packed for the machine's instructions, a step in one call.

    model = load(checkpoint, dtype="q8")
    logits, state = model.forward(tokens, state)        # tokens [B, T] -> logits [B, T, N]
    logits = model.advance([(slot, tokens), ...], pool) # any streams, any lengths, in place
    scores = model.score([(slot, tokens, targets), ...], pool)  # log-probabilities in place of logits

All are the same function: a prompt, a token, or some of each at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rookery.checkpoints import Checkpoint, Weight
from rookery.config import ModelConfig
from rookery.errors import CheckpointError, ConfigError, StateError
from rookery.native import _engine
from rookery.native.weights import MATRIX_TYPES, check_whole, pack
from rookery.state import State, check_state

__all__ = ["MAX_THREADS", "NativeModel", "load"]

MAX_THREADS: int = _engine.MAX_THREADS
"""Most threads that a model can have."""

# csrc/model/pass.h, kPromptTokens: rows whose logits are there at one time.
_SCORED_AT_ONCE = 128

_LOGITS_NOT_FINITE = (
    "the logits hold NaN or infinity: the weights do (see `rookery inspect`), or the model overflowed"
)


def load(checkpoint: Checkpoint, *, dtype: str | None = None, threads: int | None = None) -> NativeModel:
    """Pack the weights of a checkpoint.

    Args:
        checkpoint: the weights. Its embedding is not copied, and its arrays stay as they are.
        dtype: of the matrices: "float32", "bfloat16", "q8" or "q4" (blocks of 8-bit and 4-bit integers). By
            default what the checkpoint has, float16 as bfloat16. Vectors, activations and the state are
            float32; what a matrix multiplies is rounded to bfloat16 for bfloat16 matrices, and to 8 bits for
            q8 and q4.
        threads: of this model; by default the physical cores that the process may use.

    Raises:
        ConfigError: there is no such type, or threads are not 1 to ``MAX_THREADS``.
        CheckpointError: the tensors are not one model, or the file was cut off since it was opened.
    """
    if dtype is not None and dtype not in MATRIX_TYPES:
        advice = "; bfloat16 takes as much room" if dtype == "float16" else ""
        raise ConfigError(
            f"the native engine has no number type {dtype!r}; it has {', '.join(MATRIX_TYPES)}{advice}"
        )
    if threads is None:
        threads = _engine.default_threads()
    if not 1 <= threads <= MAX_THREADS:
        raise ConfigError(f"threads must be 1 to {MAX_THREADS}, not {threads}")
    return NativeModel(checkpoint, dtype=dtype, threads=threads)


class NativeModel:
    """An RWKV of any version; ``load`` makes one.

    Attributes:
        config: the shape of the model.
        threads: how many compute.
        matrix_bytes: what the packed matrices take.
    """

    def __init__(self, checkpoint: Checkpoint, *, dtype: str | None, threads: int):
        weights = pack(checkpoint, dtype=dtype, threads=threads)
        self.config: ModelConfig = checkpoint.config
        self.threads = threads
        self.matrix_bytes = sum(matrix.bytes for matrix in weights.matrices.values())
        sizes = self.config.to_dict()
        version = sizes.pop("version")
        try:
            self._model = _engine.Model(
                version,
                sizes,
                weights.vectors,
                weights.matrices,
                weights.embedding,
                weights.embedding_type,
                threads,
            )
        except ValueError as error:
            raise CheckpointError(checkpoint.path, str(error)) from None
        self._embedding: Weight = checkpoint.tensors["emb.weight"]
        self._path = checkpoint.path

    def forward(
        self, tokens: np.ndarray, state: State[np.ndarray], *, last_only: bool = False
    ) -> tuple[np.ndarray, State[np.ndarray]]:
        """Read tokens, predict the next one after each.

        Args:
            tokens: [B, T] integers, each in the vocabulary; T is at least 1.
            state: of B streams; never written into.
            last_only: give the logits after the last token alone.

        Returns:
            Logits [B, T, N] or [B, 1, N], float32, and the state after the last token.

        Raises:
            ConfigError: tokens of a wrong shape or type, none, or one outside of the vocabulary.
            StateError: the state is of another model or number of streams, or holds NaN or infinity.
            CheckpointError: the file of the weights was cut off.
        """
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise ConfigError(
                f"tokens must be integers of shape [B, T], not {tokens.dtype} of shape {tokens.shape}"
            )
        if tokens.size == 0:
            raise ConfigError(f"there must be at least one token; tokens has shape {tokens.shape}")
        B, T = tokens.shape
        check_state(state, self.config, B)
        before = State(*(_readable(name, part) for name, part in state._asdict().items()))
        after = State(*(np.empty_like(part) for part in before))
        logits = np.empty((B if last_only else B * T, self.config.vocab_size), np.float32)
        ids = np.ascontiguousarray(tokens.reshape(-1), np.int64)
        fault = self._step(ids, np.full(B, T), np.arange(B), before, after, logits, all_logits=not last_only)
        if fault is not None:
            raise StateError(_describe(fault, before))
        return logits.reshape(B, -1, self.config.vocab_size), after

    def advance(self, requests: Sequence[tuple[int, Sequence[int]]], pool: State[np.ndarray]) -> np.ndarray:
        """Let some streams of a pool read tokens, in place: prompts and single tokens in one call.

        Args:
            requests: (slot, tokens) of each stream: its place on axis 1 of the pool, and at least one token.
                No slot may appear twice.
            pool: states of any number of streams, float32 arrays; those of the streams are written to.

        Returns:
            [len(requests), N] float32, the logits after the last token of each.

        Raises:
            ConfigError: no tokens, a slot that is not there or is there twice, or a token outside of the
                vocabulary. Nothing was written.
            StateError: the pool is of another model, or cannot be written into: nothing was written. Or the
                state of a stream holds NaN or infinity: other streams have read their tokens.
            CheckpointError: the file of the weights was cut off.
        """
        slots, spans = self._checked(requests, pool)
        logits = np.empty((len(spans), self.config.vocab_size), np.float32)
        if not spans:
            return logits
        counts = np.array([len(span) for span in spans], np.int64)
        fault = self._step(np.concatenate(spans), counts, slots, pool, pool, logits, all_logits=False)
        if fault is not None:
            raise StateError(_describe(fault, None))
        return logits

    def score(
        self, requests: Sequence[tuple[int, Sequence[int], np.ndarray]], pool: State[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """As ``advance``, with log-probabilities of given tokens in place of logits.

        The head, a third of a small model's work, is computed after those tokens alone that targets follow.

        Args:
            requests: (slot, tokens, targets) of each stream. Targets are [n, 2] int64: after which of the
                tokens (from 0, ascending; several may follow the same), and the id. [0, 2] for none.
            pool: as for ``advance``.

        Returns:
            Of each request: [n] float64, the natural logarithm of each target's probability, and [n] bool,
            whether it is the likeliest token there (of several, the one of the smallest id).

        Raises:
            ConfigError, StateError, CheckpointError: as ``advance``; or targets that do not ascend or are not
                among the tokens or the vocabulary (ConfigError: nothing was written), or logits that are not
                finite (StateError).
        """
        slots, spans = self._checked([(slot, tokens) for slot, tokens, _ in requests], pool)
        if not spans:
            return []
        counts = np.array([len(span) for span in spans], np.int64)
        pairs = [
            _targets(slot, targets, len(span))
            for (slot, _, targets), span in zip(requests, spans, strict=True)
        ]
        starts = np.cumsum(counts) - counts
        rows = np.concatenate([pair[:, 0] + start for pair, start in zip(pairs, starts, strict=True)])
        targets = np.ascontiguousarray(np.concatenate([pair[:, 1] for pair in pairs]))
        found, likeliest = np.empty(len(rows), np.float64), np.empty(len(rows), np.uint8)
        room = np.empty((min(len(rows), _SCORED_AT_ONCE), self.config.vocab_size), np.float32)
        check_whole(self._embedding, self._path)
        try:
            fault = self._model.score(
                np.concatenate(spans),
                counts,
                slots,
                pool.time_shift,
                pool.channel_shift,
                pool.wkv,
                rows,
                targets,
                found,
                likeliest,
                room,
            )
        except ValueError as error:
            raise ConfigError(f"{error}; was the text encoded by another model's tokenizer?") from None
        if fault is not None:
            raise StateError(_describe(fault, None))
        if np.isnan(found).any():
            raise StateError(_LOGITS_NOT_FINITE)
        ends = np.cumsum([len(pair) for pair in pairs])[:-1]
        return list(zip(np.split(found, ends), np.split(likeliest.astype(bool), ends), strict=True))

    def _checked(
        self, requests: Sequence[tuple[int, Sequence[int]]], pool: State[np.ndarray]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """The slots, and the tokens of each, once the pool may be written into."""
        slots_of_pool = check_state(pool, self.config)
        for name, part in pool._asdict().items():
            if not isinstance(part, np.ndarray) or part.dtype != np.float32:
                raise StateError(f"state.{name} must be a numpy array of float32 to be written into")
            if not (part.flags.c_contiguous and part.flags.writeable):
                raise StateError(f"state.{name} must be contiguous and writable to be written into")
        slots = _slots([slot for slot, _ in requests], slots_of_pool)
        return slots, [_span(slot, tokens) for slot, tokens in requests]

    def _step(
        self,
        tokens: np.ndarray,
        counts: np.ndarray,
        slots: np.ndarray,
        before: State[np.ndarray],
        after: State[np.ndarray],
        logits: np.ndarray,
        *,
        all_logits: bool,
    ) -> tuple[str, int, int] | None:
        check_whole(self._embedding, self._path)
        try:
            return self._model.step(
                tokens,
                counts,
                slots,
                before.time_shift,
                before.channel_shift,
                before.wkv,
                after.time_shift,
                after.channel_shift,
                after.wkv,
                logits,
                all_logits,
            )
        except ValueError as error:
            # States and shapes were checked: what is left is tokens.
            raise ConfigError(f"{error}; was the text encoded by another model's tokenizer?") from None


def _slots(slots: list[int], of_pool: int) -> np.ndarray:
    """The slots of a call, checked."""
    for slot in slots:
        if not isinstance(slot, int | np.integer) or not 0 <= slot < of_pool:
            raise ConfigError(f"slot {slot} is not one of the pool's {of_pool}")
    if len(set(slots)) != len(slots):
        twice = next(slot for slot in slots if slots.count(slot) > 1)
        raise ConfigError(f"slot {twice} is there twice; a stream reads one span of tokens in a call")
    return np.array(slots, np.int64)


def _span(slot: int, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """The tokens of one stream, checked but for their range."""
    if len(tokens) == 0:
        raise ConfigError(f"slot {slot} was given no tokens")
    try:
        ids = np.asarray(tokens)
    except (ValueError, OverflowError):
        ids = np.empty(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ConfigError(f"slot {slot} was given what is no sequence of integers")
    return ids.astype(np.int64, copy=False)


def _targets(slot: int, targets: np.ndarray, count: int) -> np.ndarray:
    """The targets of one stream, checked but for their ids."""
    pairs = np.asarray(targets)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ConfigError(
            f"slot {slot}: targets must be integers of shape [n, 2], not {pairs.dtype} of shape {pairs.shape}"
        )
    after = pairs[:, 0]
    if len(after) and (after[0] < 0 or after[-1] >= count or (np.diff(after) < 0).any()):
        raise ConfigError(f"slot {slot}: targets must ascend, each after one of the {count} tokens")
    return pairs.astype(np.int64, copy=False)


def _readable(name: str, part: object) -> np.ndarray:
    if not isinstance(part, np.ndarray):
        raise StateError(f"state.{name} is a {type(part).__name__}; the native engine takes numpy arrays")
    return np.ascontiguousarray(part, np.float32)


def _describe(fault: tuple[str, int, int], state: State[np.ndarray] | None) -> str:
    name, layer, slot = fault
    if state is not None and np.isfinite(getattr(state, name)[:, slot]).all():
        return (
            f"layer {layer} made NaN or infinity of a state that has none: the weights do (`rookery inspect` "
            "checks them), or the model overflowed"
        )
    return (
        f"state.{name} holds NaN or infinity (stream {slot}, layer {layer}); go on from an earlier state, or "
        "from none"
    )
