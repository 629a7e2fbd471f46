"""What every tokenizer does, and text from a stream of token ids."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from rookery.errors import TokenizerError

__all__ = ["StreamDecoder", "Tokenizer", "utf8"]


class Tokenizer(ABC):
    """Text to token ids and back.

    Two laws hold for every kind:

    - ``encode`` gives only ids of text: it adds no special token, and text that spells one stays text.
    - ``decode`` is the concatenation of ``token_bytes``, read as UTF-8. It takes any ids: one without text,
      or out of range, contributes nothing; bytes that are no UTF-8 become U+FFFD.
    """

    kind: ClassVar[str]
    """Name of the kind in a spec: "world", "json", "bytes" or "chars"."""

    vocab_size: int
    """One more than the largest id, N of a model that fits."""

    end_of_text: int | None
    """The id that separates documents and ends a generated text, or None where there is none."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text; an empty list for an empty text.

        Raises:
            TokenizerError: the text has a lone surrogate or a character outside the vocabulary.
        """

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """What one id stands for, maybe a part of a UTF-8 character; ``b""`` for an id without text."""

    @abstractmethod
    def to_spec(self) -> dict[str, Any]:
        """Plain values for JSON from which ``rookery.tokenizers.from_spec`` makes this tokenizer again."""

    def encode_array(self, text: str) -> np.ndarray:
        """``encode`` for a corpus: ids [T] of type ``array_dtype``.

        Raises:
            TokenizerError: as ``encode``.
        """
        return np.array(self.encode(text), dtype=self.array_dtype)

    @property
    def array_dtype(self) -> np.dtype[Any]:
        """The smaller of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some ids; never raises for what the ids are."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", errors="replace")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size})"


class StreamDecoder:
    """Text as its tokens arrive, whole characters only.

    What ``push`` returns for each id, and ``flush`` at the end, join to what ``Tokenizer.decode`` gives.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @property
    def pending(self) -> bytes:
        """The beginning of a character whose end has not come yet: 0 to 3 bytes."""
        return self._decoder.getstate()[0]

    def push(self, token: int) -> str:
        """The characters that this id completes; often one word, empty inside a character."""
        return self._decoder.decode(self.tokenizer.token_bytes(token))

    def flush(self) -> str:
        """U+FFFD if the text ended inside a character, else nothing; the decoder is then as new."""
        return self._decoder.decode(b"", final=True)

    def fork(self) -> StreamDecoder:
        """A second decoder that goes on from here by itself."""
        other = StreamDecoder(self.tokenizer)
        other._decoder.setstate(self._decoder.getstate())
        return other


def utf8(text: str) -> bytes:
    """A text as UTF-8.

    Raises:
        TokenizerError: the text has a lone surrogate, which UTF-8 cannot hold.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"character {error.start} of the text is the lone surrogate U+{ord(text[error.start]):04X}, "
            f"which UTF-8 cannot hold; if a file was read with errors='surrogateescape', use errors='replace'"
        ) from error
