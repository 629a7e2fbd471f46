"""A model, its tokenizer, and what one does with them."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rookery import checkpoints, tokenizers
from rookery.config import ModelConfig
from rookery.errors import ConfigError, StateError, TokenizerError
from rookery.generate.backend import Backend, choose, open_backend
from rookery.generate.sampling import SamplingParams
from rookery.generate.session import Session
from rookery.generate.state_file import fingerprint
from rookery.state import State, check_state
from rookery.tokenizers import Tokenizer

__all__ = ["LanguageModel", "load"]


def load(
    path: str | Path,
    *,
    backend: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    threads: int | None = None,
) -> LanguageModel:
    """Load a model to run it.

    Args:
        path: a model file of any format that ``rookery.checkpoints`` reads, or a folder: a run folder, or a
            Hugging Face model.
        backend: a name of ``rookery.generate.BACKENDS``; by default the first that is installed and runs on
            the device.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; by default CUDA where torch can use it, else the
            CPU.
        dtype: of the weights: ``"float32"``, ``"bfloat16"``, ``"q8"`` and ``"q4"``, blocks of 8-bit and 4-bit
            integers; in torch also ``"float16"``. By default the file's (torch on a CPU: float32). The
            recurrent state is float32 always.
        tokenizer: ``"world"``, ``"bytes"``, or the path of a tokenizer.json; by default the one that the
            model carries, else the one that published models of this vocabulary have, else none.
        threads: of the CPU (torch: for the whole process); by default the backend's choice.

    Raises:
        MissingExtraError: no backend is installed.
        CheckpointError: the file cannot be read.
        TokenizerError: the tokenizer cannot be read, or has more ids than the model.
        ConfigError: the backend, device or dtype is unknown or cannot be used.
    """
    # Before the file: it may take long to read, and nothing would come of it.
    backend = choose(backend, device)
    checkpoint = checkpoints.load(path)
    chosen = _tokenizer(checkpoint, tokenizer)
    opened = open_backend(checkpoint, name=backend, device=device, dtype=dtype, threads=threads)
    return LanguageModel(opened, chosen, fingerprint=fingerprint(checkpoint.tensors))


class LanguageModel:
    """A loaded model.

        logits, state = model(tokens)                 # ints in, float32 [T, N] out
        logits, state = model(more_tokens, state)
        model.generate("def fibonacci(n):", max_tokens=100, temperature=0.8, seed=1)

    Attributes:
        backend: what runs it.
        tokenizer: for text in and out; None if none is known: then everything works with token ids but text.
        fingerprint: tells its weights from others of the same shape, in state files.
    """

    def __init__(self, backend: Backend, tokenizer: Tokenizer | None = None, *, fingerprint: str = ""):
        if tokenizer is not None and tokenizer.vocab_size > backend.config.vocab_size:
            raise TokenizerError(
                f"the tokenizer has {tokenizer.vocab_size} ids, but the model only "
                f"{backend.config.vocab_size}; give the tokenizer that the model was trained with"
            )
        self.backend = backend
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        return self.backend.config

    def __call__(
        self, tokens: Sequence[int] | np.ndarray, state: State[Any] | None = None
    ) -> tuple[np.ndarray, State[Any]]:
        """Read tokens and predict the next one after each.

        Args:
            tokens: T ids, at least one.
            state: of one stream, as the last call returned it, or of numpy arrays; never written into. None
                at the start of a text.

        Returns:
            Logits [T, N] float32, and the state after the last token, made of the backend's own arrays
            (``model.backend.to_numpy`` makes float32 arrays of them).

        Raises:
            ConfigError: no tokens, or one that is no integer or outside of the vocabulary.
            StateError: the state is of another model or of several streams, or holds NaN.
        """
        return self.run(tokens, state)

    def run(
        self,
        tokens: Sequence[int] | np.ndarray,
        state: State[Any] | None = None,
        *,
        last_only: bool = False,
    ) -> tuple[np.ndarray, State[Any]]:
        """As calling the model; with ``last_only`` the logits are [1, N], after the last token alone."""
        ids = self._ids(tokens)
        if state is None:
            before = self.backend.initial_state()
        else:
            check_state(state, self.config, 1)
            before = self.backend.from_numpy(state) if isinstance(state.wkv, np.ndarray) else state
        logits, after = self.backend.forward(ids[None], before, last_only=last_only)
        # A state with NaN in it gives nothing else, so looking at the logits costs less than at the state.
        if not np.isfinite(logits).all():
            raise StateError(self._not_finite(before))
        return logits[0], after

    def generate(
        self,
        prompt: str | Sequence[int] = "",
        *,
        sampling: SamplingParams | None = None,
        **options: Any,
    ) -> str:
        """The text that the model writes after a prompt; see ``stream``."""
        return "".join(self.stream(prompt, sampling=sampling, **options))

    def stream(
        self,
        prompt: str | Sequence[int] = "",
        *,
        sampling: SamplingParams | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """The text that the model writes after a prompt, in pieces of whole characters, as it comes.

        Args:
            prompt: text, or token ids. An empty one is the start of a document: the end-of-text token that
                divides documents is read, or a newline where the tokenizer has none.
            sampling: parameters; default ``SamplingParams()``.
            options: single fields of ``SamplingParams`` in place of those of ``sampling``: ``max_tokens``,
                ``temperature``, ``top_p``, ``stop``, ``seed``, ... The same seed gives the same text.

        Raises:
            ConfigError: an option is unknown or out of range.
            TokenizerError: there is no tokenizer, or it cannot encode the prompt.
        """
        session = self.session(sampling, **options)
        # At once, not when the first piece is asked for, so that mistakes show where they are made.
        if len(prompt):
            session.feed(prompt)
        return session.stream()

    def session(self, sampling: SamplingParams | None = None, **options: Any) -> Session:
        """A new stream: text goes in and comes out, and the state stays.

        Args:
            sampling: parameters; default ``SamplingParams()``.
            options: single fields of ``SamplingParams``.

        Raises:
            ConfigError: an option is unknown or out of range.
            TokenizerError: there is no tokenizer.
        """
        return Session(self, sampling, **options)

    def _ids(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        if isinstance(tokens, str | bytes):
            raise ConfigError("the model takes token ids, not text; model.tokenizer.encode(text) makes them")
        try:
            ids = np.array([operator.index(token) for token in tokens], np.int64)
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"the model takes a sequence of integers, not {_brief(tokens)}") from None
        if not len(ids):
            raise ConfigError("the model needs at least one token, and was given none")
        bad = np.flatnonzero((ids < 0) | (ids >= self.config.vocab_size))
        if len(bad):
            raise ConfigError(
                f"token {ids[bad[0]]} at position {bad[0]} is outside of the vocabulary of "
                f"{self.config.vocab_size}; was the text encoded by another model's tokenizer?"
            )
        return ids

    def _not_finite(self, state: State[Any]) -> str:
        for name, part in self.backend.to_numpy(state)._asdict().items():
            if not np.isfinite(part).all():
                return f"state.{name} holds NaN or infinity; go on from an earlier state, or from none"
        return (
            "the model's logits hold NaN or infinity, though the state before them did not: its weights do "
            "(`rookery inspect` checks them), or it overflowed; if it runs in float16, try float32"
        )

    def __repr__(self) -> str:
        config = self.config
        return (
            f"LanguageModel(RWKV-{config.version}, {config.num_layers} layers, width {config.width}, "
            f"vocabulary {config.vocab_size}, {self.tokenizer})"
        )


def _tokenizer(checkpoint: checkpoints.Checkpoint, asked: str | Path | Tokenizer | None) -> Tokenizer | None:
    if isinstance(asked, Tokenizer):
        return asked
    if asked is not None:
        return tokenizers.named(asked)
    if checkpoint.tokenizer is not None:
        return tokenizers.from_spec(checkpoint.tokenizer)
    return tokenizers.guess(checkpoint.config.vocab_size)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
