"""The World tokenizer of RWKV-4 World, 5, 6 and 7: greedy longest match over 65,529 byte strings.

Ids 1 to 65529 are the lines of the vocabulary file, 0 is the end of text, and the vocabulary is padded to
65536. The file comes with the package ``pyrwkv-tokenizer``, and so does an encoder for long texts. It takes
0.7 s to load, in which a short text is encoded here many times over. Its ``decode`` panics on tokens that
end inside a character, so decoding goes through a table of our own.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rookery.errors import TokenizerError
from rookery.tokenizers.base import Tokenizer, utf8

__all__ = ["GreedyEncoder", "Vocabulary", "WorldTokenizer"]

_VOCAB_SIZE = 65536
_PACKAGE = "pyrwkv_tokenizer"
_FILE = "rwkv_vocab_v20230424.txt"

# Bytes of the longest token, 65529: 128 spaces.
_LONGEST = 128

# Characters that are encoded at a time.
_PIECE = 1 << 20

# Bytes that are encoded here, all in all: that takes as long as loading the other encoder.
_SHORT = 1 << 18

# Tokens with more bytes than this are looked for only where so many bytes begin one.
_STEM = 8

# An id, a Python literal of str or bytes, and the number of its bytes: b"258 '\\t\\n' 2".
_LINE = re.compile(rb"""(\d+) (b?["'].*["']) (\d+)\r?""")
_LINES = re.compile(rb"""^(\d+) b?["'](.*)["'] (\d+)\r?$""", re.MULTILINE)


class WorldTokenizer(Tokenizer):
    """The official World vocabulary. The table and the encoders load when they are first used.

    Raises:
        TokenizerError: when first used, if ``pyrwkv-tokenizer`` is not installed or its vocabulary is broken.
    """

    kind: ClassVar[str] = "world"

    def __init__(self) -> None:
        self.vocab_size = _VOCAB_SIZE
        self.end_of_text: int | None = 0

    def encode(self, text: str) -> list[int]:
        """The ids of the official tokenizer."""
        return _encoder().encode(text, text)

    def encode_array(self, text: str) -> np.ndarray:
        """The same ids as an array [T]; a long text is encoded piece by piece.

        The list of a corpus' ids would take 20 times the memory of the array.

        Raises:
            TokenizerError: as ``encode``.
        """
        pieces = []
        start, size = 0, _PIECE
        while start < len(text):
            piece = text[start : start + size]
            tokens = _encoder().encode(piece, text)
            done = len(piece)
            if start + done < len(text):
                kept, done = self._certain(tokens, piece)
                tokens = tokens[:kept]
            pieces.append(np.array(tokens, dtype=self.array_dtype))
            start += done
            size = _PIECE if done else 2 * size
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=self.array_dtype)

    def _certain(self, tokens: list[int], piece: str) -> tuple[int, int]:
        """How many tokens stay whatever text follows the piece, and how many characters they are."""
        tail = b""
        kept = len(tokens)
        # A match depends on no more bytes than the longest token has; the next piece starts with a character.
        while kept and (len(tail) < _LONGEST or tail[0] & 0xC0 == 0x80):
            kept -= 1
            tail = self.token_bytes(tokens[kept]) + tail
        return kept, len(piece) - len(tail.decode("utf-8"))

    def token_bytes(self, token: int) -> bytes:
        """The bytes on the line of this id; ``b""`` for 0 and for the padding, 65530 to 65535."""
        vocabulary = _vocabulary()
        return vocabulary[token] if 0 <= token < len(vocabulary) else b""

    def to_spec(self) -> dict[str, Any]:
        """``{"kind": "world"}``."""
        return {"kind": self.kind}


class Vocabulary:
    """The bytes of each id, parsed line by line when asked for: all 65529 would take 0.3 s.

    Args:
        data: a World vocabulary file; line n describes the id n.
        where: what a message calls it.

    Raises:
        TokenizerError: a line that is asked for is not ``ID LITERAL LENGTH`` with the right id and length.
    """

    def __init__(self, data: bytes, where: str):
        self._data = data
        self._lines = data.removesuffix(b"\n").split(b"\n")
        self._where = where
        self._bytes: list[bytes | None] = [b"", *[None] * len(self._lines)]

    def __len__(self) -> int:
        """One more than the largest id."""
        return len(self._bytes)

    def __getitem__(self, token: int) -> bytes:
        value = self._bytes[token]
        if value is None:
            value = self._bytes[token] = self._parse(token)
        return value

    def all(self) -> list[bytes]:
        """The bytes of the ids 1, 2, ..., in 40 ms."""
        lines = _LINES.findall(self._data)
        if len(lines) < len(self._lines):
            return [self[token] for token in range(1, len(self))]
        # What has no escapes, and so most, is there as it is.
        return [
            text if int(number) == token and int(size) == len(text) and b"\\" not in text else self[token]
            for token, (number, text, size) in enumerate(lines, 1)
        ]

    def _parse(self, token: int) -> bytes:
        line = self._lines[token - 1]
        match = _LINE.fullmatch(line)
        value = _literal(match[2]) if match else b""
        if match is None or not value or int(match[1]) != token or int(match[3]) != len(value):
            raise TokenizerError(
                f"{self._where}: line {token} is not the id {token}, a Python literal and its length, "
                f"but {line[:80]!r}; reinstall pyrwkv-tokenizer"
            )
        return value


def _literal(source: bytes) -> bytes:
    try:
        value = ast.literal_eval(source.decode("utf-8"))
    except (SyntaxError, ValueError):
        return b""
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace")
    return value if isinstance(value, bytes) else b""


@cache
def _vocabulary() -> Vocabulary:
    # Found without importing the package, whose encoder takes some 0.5 s to load.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise _not_installed()
    path = Path(spec.origin).parent / _FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}; reinstall pyrwkv-tokenizer") from error
    return Vocabulary(data, str(path))


class GreedyEncoder:
    """Greedy longest match over the tokens of a vocabulary.

    Args:
        tokens: the bytes of the ids 1, 2, ...; every single byte must be among them.

    Raises:
        TokenizerError: a byte is missing.
    """

    def __init__(self, tokens: Sequence[bytes]):
        self._ids = dict(zip(tokens, range(1, len(tokens) + 1), strict=True))
        for byte in range(256):
            if bytes([byte]) not in self._ids:
                raise TokenizerError(f"the vocabulary has no token for the byte {byte}; reinstall {_PACKAGE}")
        self._stems = {token[:_STEM] for token in tokens if len(token) > _STEM}
        self._lengths = sorted({len(token) for token in tokens}, reverse=True)
        self._short = [length for length in self._lengths if length <= _STEM]

    def encode(self, data: bytes) -> list[int]:
        """The ids of the tokens that some bytes consist of."""
        ids, result, start = self._ids, [], 0
        while start < len(data):
            # At the end a slice is shorter than asked for; what it finds is the longest match all the same.
            for length in self._lengths if data[start : start + _STEM] in self._stems else self._short:
                piece = data[start : start + length]
                if piece in ids:
                    result.append(ids[piece])
                    start += len(piece)
                    break
        return result


class _Encoder:
    """Encodes here, until so much text has come that loading the other encoder pays."""

    def __init__(self) -> None:
        self._seen = 0

    def encode(self, piece: str, text: str) -> list[int]:
        """The ids of a piece of a text."""
        try:
            data = piece.encode("utf-8")
        except UnicodeEncodeError:
            utf8(text)  # says where in the whole text
            raise
        self._seen += len(data)
        return _greedy().encode(data) if self._seen <= _SHORT else _official()(piece)


@cache
def _encoder() -> _Encoder:
    return _Encoder()


@cache
def _greedy() -> GreedyEncoder:
    return GreedyEncoder(_vocabulary().all())


@cache
def _official() -> Callable[[str], list[int]]:
    try:
        from pyrwkv_tokenizer import RWKVTokenizer
    except ImportError as error:
        raise _not_installed() from error
    return RWKVTokenizer().encode


def _not_installed() -> TokenizerError:
    return TokenizerError(
        "the World tokenizer needs pyrwkv-tokenizer, which is not installed: pip install pyrwkv-tokenizer"
    )
