"""One stream of text: what was read is a state of constant size, however long the text."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import ReferenceType, ref

import numpy as np

from rookery.errors import ConfigError, StateError, TokenizerError
from rookery.generate.sampling import Sampler, SamplingParams
from rookery.generate.state_file import SavedSession, read_state, write_state
from rookery.generate.stops import StopScanner
from rookery.state import State
from rookery.tokenizers import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from rookery.generate.language_model import LanguageModel

__all__ = ["MAX_UNDO", "FinishReason", "Session"]

MAX_UNDO = 16
"""Turns that can be taken back; each keeps one state (2.4 MB for RWKV-7 0.1B, 34 MB for 7.2B)."""

FinishReason = Literal["stop", "end_of_text", "max_tokens"]


@dataclass(frozen=True, kw_only=True)
class _Point:
    """Everything that reading a token changes. States are never written into, so a point copies none."""

    state: State[Any]
    logits: np.ndarray | None
    position: int
    unread: int | None
    """The last token that was chosen: it is read once the logits after it are needed."""
    partial: tuple[int, ...]
    sampler: Sampler


class _Trail:
    """The points before the last tokens, as far back as a stop string may begin."""

    def __init__(self) -> None:
        # A point, and the number of characters that came before it; and the text since the first of them.
        self._steps: deque[tuple[_Point, int]] = deque()
        self._text = ""
        self._end = 0

    def push(self, before: _Point, piece: str) -> None:
        """One token: the point before it, and the characters that it completed."""
        self._steps.append((before, self._end))
        self._text += piece
        self._end += len(piece)

    def settle(self, returned: int) -> None:
        """So many characters were returned and stay: forget what lies before them."""
        # Only between two characters can text be cut, and so only such a point is gone back to.
        clean = [i for i, (p, offset) in enumerate(self._steps) if offset <= returned and not p.partial]
        for _ in range(clean[-1] if clean else 0):
            self._steps.popleft()
        if self._steps:
            self._text = self._text[len(self._text) - (self._end - self._steps[0][1]) :]

    def before(self, returned: int) -> tuple[_Point, str] | None:
        """Where to go back to, and the text to read from there, if more came than was returned."""
        if returned >= self._end:
            return None
        point, offset = self._steps[0]
        return point, self._text[: max(returned - offset, 0)]


class Session:
    """A stream that is fed text and writes text.

        session = model.session(temperature=0.8, seed=1)
        session.feed("User: hello\\n\\nAssistant:")
        answer = session.generate(stop=["\\n\\nUser:"])
        session.undo()                     # back to before the last feed

    What the session has read is exactly what it was fed and what it returned: the end-of-text token, a stop
    string and what was held back for one are taken back. Calls continue each other, so that two calls with
    ``max_tokens=10`` write what one with 20 does. A character whose end has not come when the tokens are
    used up comes with the next call.

    Penalties count the tokens that the model wrote in the session, not those it was fed.

    Attributes:
        model: the model.
        sampling: the parameters in force; replace them at any time.
        finish_reason: why the last text ended: ``"stop"``, ``"end_of_text"``, ``"max_tokens"``; None while it
            is being written, or if it was broken off.
        generated: tokens chosen for the last text; the end-of-text token is not counted.
    """

    def __init__(self, model: LanguageModel, sampling: SamplingParams | None = None, **options: Any):
        if model.tokenizer is None:
            raise TokenizerError(
                f"no tokenizer is known for this model of {model.config.vocab_size} tokens; "
                f"give one when it is loaded: tokenizer=... (--tokenizer): world, bytes, or a tokenizer.json"
            )
        self.model = model
        self._tokenizer: Tokenizer = model.tokenizer
        self.sampling = _with_options(sampling or SamplingParams(), options)
        self.finish_reason: FinishReason | None = None
        self.generated = 0
        self._turns: deque[_Point] = deque(maxlen=MAX_UNDO)
        self._open: ReferenceType[Generator[str, None, None]] | None = None
        self._sampler = Sampler(self.sampling)
        self._set(self._start())

    @property
    def position(self) -> int:
        """Tokens read since the start."""
        return self._position + (self._unread is not None)

    @property
    def state(self) -> State[Any]:
        """The state after all tokens, of the backend's own arrays."""
        self._read_unread()
        return self._state

    @property
    def logits(self) -> np.ndarray | None:
        """[N] float32, what is expected next; None before the first token."""
        self._read_unread()
        return self._logits

    def feed(self, text: str | Sequence[int]) -> None:
        """Read text, or token ids. A turn begins: ``undo`` goes back to before it.

        Raises:
            TokenizerError: the tokenizer cannot encode the text.
            ConfigError: a token is outside of the vocabulary.
        """
        tokens = self._tokenizer.encode(text) if isinstance(text, str) else text
        self._end_stream()
        before = self._point()
        if len(tokens):
            self._read_unread()
            self._read(tokens)
            # The text is cut here: a character that was not finished never will be.
            self._partial = ()
        self._turns.append(before)

    def generate(self, **options: Any) -> str:
        """The text that the model writes next; see ``stream``."""
        return "".join(self.stream(**options))

    def stream(self, **options: Any) -> Generator[str, None, None]:
        """The text that the model writes next, in pieces of whole characters, as it comes.

        It ends at the end-of-text token, before a stop string, or after ``max_tokens`` tokens;
        ``finish_reason`` says which. Breaking it off keeps what was returned, and so does any other use of
        the session, which ends it. A session that has read nothing reads the end-of-text token first, which
        stands between documents, or a newline where the tokenizer has none.

        Args:
            options: fields of ``SamplingParams`` in place of those of the session, for this call. A seed
                starts the random numbers anew.

        Raises:
            ConfigError: an option is unknown or out of range.
        """
        params = _with_options(self.sampling, options)
        self._end_stream()
        if options.get("seed") is not None:
            self.reseed(options["seed"])
        self._sampler.params = params
        self.finish_reason, self.generated = None, 0
        if self.position == 0:
            self._read(self._first_tokens())
        stream = self._write(params)
        self._open = ref(stream)
        return stream

    def fork(self, *, seed: int | None = None) -> Session:
        """A second session that goes on from here by itself; it costs no copy of the state.

        Args:
            seed: random numbers of its own; by default both would write the same.
        """
        other = Session(self.model, self.sampling)
        other._set(self._point())
        if seed is not None:
            other._sampler = other._sampler.fork(seed=seed)
        other._turns = self._turns.copy()
        return other

    def undo(self) -> None:
        """Take back the last turn: the last ``feed`` and all that was written since.

        Penalties go back too, but the random numbers go on, so that a second try can give another text.

        Raises:
            StateError: there is no turn to take back; the last ``MAX_UNDO`` are kept.
        """
        if not self._turns:
            raise StateError(f"there is no turn to take back (the last {MAX_UNDO} are kept)")
        self._end_stream()
        self._go_back(self._turns.pop())

    def reset(self) -> None:
        """Forget all that was read, and the turns before; the random numbers go on."""
        self._end_stream()
        self._turns.clear()
        self._go_back(self._start())

    def reseed(self, seed: int) -> None:
        """Start the random numbers anew.

        Raises:
            ConfigError: the seed is out of range.
        """
        self._sampler = self._sampler.fork(seed=seed)
        self._sampler.step = 0

    def forget_penalties(self) -> None:
        """Let penalties count from here, as in a new text."""
        self._sampler = self._go_on(Sampler(self.sampling))

    def save(self, path: str | Path) -> None:
        """Write all of it but the turns to a file, from which ``load`` goes on exactly.

        Raises:
            StateError: the file cannot be written.
        """
        self._read_unread()
        sampler = self._sampler.fork()
        # What one call was given in place of it is not the session's.
        sampler.params = self.sampling
        saved = SavedSession(
            config=self.model.config,
            model=self.model.fingerprint,
            state=self.model.backend.to_numpy(self._state),
            logits=self._logits,
            position=self._position,
            partial=self._partial,
            sampler=sampler,
        )
        write_state(path, saved)

    def load(self, path: str | Path) -> None:
        """Go on from a file that ``save`` wrote, sampling parameters and random numbers included.

        Raises:
            StateError: the file is no state file, is broken, or is of another model; the session is then as
                it was.
        """
        saved = read_state(path, self.model.config, self.model.fingerprint)
        self._end_stream()
        self._turns.clear()
        self.sampling = saved.sampler.params
        self._set(
            _Point(
                state=self.model.backend.from_numpy(saved.state),
                logits=saved.logits,
                position=saved.position,
                unread=None,
                partial=saved.partial,
                sampler=saved.sampler,
            )
        )

    def _write(self, params: SamplingParams) -> Generator[str, None, None]:
        scanner, trail, returned = StopScanner(params.stop), _Trail(), 0
        decoder = StreamDecoder(self._tokenizer)
        for token in self._partial:
            # What these completed was returned by the last call.
            decoder.push(token)
        try:
            while params.max_tokens is None or self.generated < params.max_tokens:
                self._read_unread()
                assert self._logits is not None
                before = self._point() if params.stop else None
                token = self._sampler.sample(self._logits)
                ended = token == self._tokenizer.end_of_text
                piece = decoder.flush() if ended else decoder.push(token)
                if before is not None:
                    trail.push(before, piece)
                if not ended:
                    self._take(token)
                self._partial = (*self._partial, token) if decoder.pending else ()
                certain = scanner.push(piece)
                if ended:
                    certain += scanner.flush()
                returned += len(certain)
                trail.settle(returned)
                if scanner.stopped or ended:
                    self.finish_reason = "stop" if scanner.stopped else "end_of_text"
                if certain:
                    yield certain
                if self.finish_reason:
                    break
            else:
                self.finish_reason = "max_tokens"
                rest = scanner.flush()
                returned += len(rest)
                if rest:
                    yield rest
        finally:
            if beyond := trail.before(returned):
                point, text = beyond
                self._go_back(point)
                self._read(self._tokenizer.encode(text))

    def _take(self, token: int) -> None:
        self._sampler.observe(token)
        self._unread = token
        self.generated += 1

    def _end_stream(self) -> None:
        stream = self._open() if self._open is not None else None
        if stream is not None:
            stream.close()

    def _read_unread(self) -> None:
        # By itself, never together with what follows: so it makes no difference when this is called.
        if self._unread is not None:
            self._read([self._unread])
            self._unread = None

    def _read(self, tokens: Sequence[int]) -> None:
        if not len(tokens):
            return
        logits, state = self.model.run(tokens, self._state, last_only=True)
        self._state, self._logits = state, logits[0]
        self._position += len(tokens)

    def _first_tokens(self) -> list[int]:
        if self._tokenizer.end_of_text is not None:
            return [self._tokenizer.end_of_text]
        try:
            return self._tokenizer.encode("\n")
        except TokenizerError as error:
            raise ConfigError(
                "the prompt is empty, and the tokenizer has neither an end-of-text token nor a newline to "
                "begin with; give a prompt"
            ) from error

    def _start(self) -> _Point:
        return _Point(
            state=self.model.backend.initial_state(),
            logits=None,
            position=0,
            unread=None,
            partial=(),
            sampler=Sampler(self.sampling),
        )

    def _point(self) -> _Point:
        return _Point(
            state=self._state,
            logits=self._logits,
            position=self._position,
            unread=self._unread,
            partial=self._partial,
            sampler=self._sampler.fork(),
        )

    def _set(self, point: _Point) -> None:
        self._state, self._logits = point.state, point.logits
        self._position, self._unread = point.position, point.unread
        self._partial, self._sampler = point.partial, point.sampler

    def _go_back(self, point: _Point) -> None:
        self._set(replace(point, sampler=self._go_on(point.sampler.fork())))

    def _go_on(self, sampler: Sampler) -> Sampler:
        """The sampler, with the parameters and the place in the random numbers of the present one."""
        sampler.params = self._sampler.params
        sampler.seed, sampler.step = self._sampler.seed, self._sampler.step
        return sampler


def _with_options(params: SamplingParams, options: dict[str, Any]) -> SamplingParams:
    known = [field.name for field in fields(SamplingParams)]
    for name in options:
        if name not in known:
            raise ConfigError(f"there is no sampling parameter {name!r}; there are {', '.join(known)}")
    return replace(params, **options)
