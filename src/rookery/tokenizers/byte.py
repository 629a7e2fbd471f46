"""The bytes of UTF-8 as tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from rookery.tokenizers.base import Tokenizer, utf8

__all__ = ["ByteTokenizer"]

_BYTES = tuple(bytes([value]) for value in range(256))


class ByteTokenizer(Tokenizer):
    """256 ids, each one byte.

    Byte 0 is a byte like the others and also ``end_of_text``: it occurs in no text file, and it is where the
    World tokenizer has its end of text. A byte model is the same for any data: ``encode_bytes`` takes it raw.
    """

    kind: ClassVar[str] = "bytes"

    def __init__(self) -> None:
        self.vocab_size = 256
        self.end_of_text: int | None = 0

    def encode(self, text: str) -> list[int]:
        """One id for each byte of the text's UTF-8."""
        return list(utf8(text))

    def encode_array(self, text: str) -> np.ndarray:
        """One uint16 for each byte of the text's UTF-8, [T]."""
        return self.encode_bytes(utf8(text))

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """One uint16 for each byte of data that need not be text, [T]."""
        return np.frombuffer(data, dtype=np.uint8).astype(self.array_dtype)

    def token_bytes(self, token: int) -> bytes:
        """The byte with this value."""
        return _BYTES[token] if 0 <= token < 256 else b""

    def to_spec(self) -> dict[str, Any]:
        """``{"kind": "bytes"}``."""
        return {"kind": self.kind}
