"""The characters of one corpus as tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from rookery.errors import TokenizerError
from rookery.tokenizers.base import Tokenizer, utf8

__all__ = ["CharTokenizer"]

# uint32 in the machine's own byte order is how numpy reads code points.
_UTF32 = "utf-32-le" if np.little_endian else "utf-32-be"


class CharTokenizer(Tokenizer):
    """One id for each different character of a corpus; it has no end of text.

    Args:
        alphabet: the characters; the position of each is its id. ``from_corpus`` sorts them by code point.

    Raises:
        TokenizerError: the alphabet is empty, or names a character twice, or holds a lone surrogate.
    """

    kind: ClassVar[str] = "chars"

    def __init__(self, alphabet: str):
        if not alphabet:
            raise TokenizerError("a character tokenizer needs at least one character; the alphabet is empty")
        if len(set(alphabet)) != len(alphabet):
            twice = next(char for char in alphabet if alphabet.count(char) > 1)
            raise TokenizerError(f"the alphabet of a character tokenizer has {twice!r} twice")
        self.alphabet = alphabet
        self.vocab_size = len(alphabet)
        self.end_of_text: int | None = None
        self._bytes = [utf8(char) for char in alphabet]
        self._ids = {char: position for position, char in enumerate(alphabet)}
        codes = _code_points(alphabet)
        # Id of each code point up to the largest one of the alphabet; -1 where there is none.
        self._id_of_code = np.full(int(codes.max()) + 1, -1, dtype=np.int32)
        self._id_of_code[codes] = np.arange(len(alphabet), dtype=np.int32)

    @classmethod
    def from_corpus(cls, text: str) -> CharTokenizer:
        """The tokenizer of all characters that occur in a text, in the order of their code points.

        Raises:
            TokenizerError: the text is empty or has a lone surrogate.
        """
        utf8(text)
        codes = _code_points(text)
        if not len(codes):
            raise TokenizerError("a character tokenizer needs a corpus, and this one is empty")
        present = np.flatnonzero(np.bincount(codes))
        return cls("".join(map(chr, present.tolist())))

    def encode(self, text: str) -> list[int]:
        """One id for each character.

        Raises:
            TokenizerError: a character that is not in the alphabet; the message names it and its position.
        """
        try:
            return [self._ids[char] for char in text]
        except KeyError:
            position = next(i for i, char in enumerate(text) if char not in self._ids)
            raise self._unknown(text, position) from None

    def encode_array(self, text: str) -> np.ndarray:
        """One id for each character, [T].

        Raises:
            TokenizerError: as ``encode``.
        """
        codes = _code_points(text)
        inside = codes < len(self._id_of_code)
        tokens = self._id_of_code[np.where(inside, codes, 0)]
        unknown = ~inside | (tokens < 0)
        if unknown.any():
            raise self._unknown(text, int(unknown.argmax()))
        return tokens.astype(self.array_dtype)

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 of one character."""
        return self._bytes[token] if 0 <= token < self.vocab_size else b""

    def to_spec(self) -> dict[str, Any]:
        """``{"kind": "chars", "alphabet": ...}``."""
        return {"kind": self.kind, "alphabet": self.alphabet}

    def _unknown(self, text: str, position: int) -> TokenizerError:
        char = text[position]
        return TokenizerError(
            f"character {position} of the text is {char!r} (U+{ord(char):04X}), which the corpus that this "
            f"tokenizer was made from does not have; it knows {self.vocab_size} characters"
        )


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(_UTF32, errors="surrogatepass"), dtype=np.uint32)
