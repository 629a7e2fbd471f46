"""Any tokenizer of the `tokenizers` library, from its JSON; the Pile models' 20B tokenizer is one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, ClassVar

from rookery.errors import TokenizerError
from rookery.tokenizers.base import Tokenizer, utf8

__all__ = ["JsonTokenizer"]

# What published tokenizers call their end of text, the likeliest first.
_ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<s>")

# Turns what one step of decoding sees of a token into what it passes on: text, or bytes at the end.
_Step = Callable[[str], str | bytes]


class JsonTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library.

    - ``encode`` adds no special token, and text that spells one, such as ``<|endoftext|>``, is text.
    - Special tokens have no ``token_bytes``; other added tokens stand for their text.
    - ``token_bytes`` follows the decoder of the file token by token: byte-level alphabets, byte fallback
      (``<0xE4>``), metaspace, word pieces, suffixes, replacements. Rules for whole texts are left out, so
      that a stream can start anywhere: a space that the decoder would strip at the very beginning stays.

    Args:
        text: the content of a ``tokenizer.json``.

    Raises:
        TokenizerError: the text is not JSON, or not a tokenizer.
    """

    kind: ClassVar[str] = "json"

    def __init__(self, text: str):
        # Takes 50 ms to import; the World and byte models never need it.
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
            steps = _steps(json.loads(text))
        except Exception as error:  # the library raises plain Exception
            raise TokenizerError(
                f"not the JSON of a tokenizer of the `tokenizers` library: {error}"
            ) from error
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._text = text
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise TokenizerError("this tokenizer JSON has an empty vocabulary; it was never trained")
        self.vocab_size = max(vocabulary.values()) + 1
        self.end_of_text: int | None = next((vocabulary[e] for e in _ENDS_OF_TEXT if e in vocabulary), None)
        self._table = [b""] * self.vocab_size
        for token, position in vocabulary.items():
            self._table[position] = _apply(steps, token)
        # Not the ids in the file: the library may number added tokens anew.
        for position, added in self._tokenizer.get_added_tokens_decoder().items():
            self._table[position] = b"" if added.special else utf8(added.content)

    def encode(self, text: str) -> list[int]:
        """The ids that the library gives without special tokens."""
        utf8(text)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token: int) -> bytes:
        """What the file's decoder makes of one id; ``b""`` for special tokens and holes."""
        return self._table[token] if 0 <= token < self.vocab_size else b""

    def to_spec(self) -> dict[str, Any]:
        """``{"kind": "json", "json": the text of the file}``."""
        return {"kind": self.kind, "json": self._text}


def _steps(rules: dict[str, Any]) -> list[_Step]:
    """The steps of the file's decoder, in order."""
    decoder = rules.get("decoder")
    if decoder is None:
        # Files without a decoder: the library joins tokens with spaces, which is wrong for byte-level ones.
        byte_level = '"ByteLevel"' in json.dumps(rules.get("pre_tokenizer"))
        parts = [{"type": "ByteLevel" if byte_level else "Spaces"}]
    else:
        parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return [_STEPS[part["type"]](part) for part in parts if part["type"] in _STEPS]


def _apply(steps: list[_Step], token: str) -> bytes:
    value: str | bytes = token
    for step in steps:
        if isinstance(value, bytes):
            break
        value = step(value)
    return value if isinstance(value, bytes) else value.encode("utf-8")


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes (GPT-2's ``bytes_to_unicode``).

    Printable Latin-1 stands for itself; the other 68 bytes follow from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + i): v for i, v in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _byte_level(_: dict[str, Any]) -> _Step:
    def step(token: str) -> bytes:
        try:
            return bytes([_BYTE_OF[char] for char in token])
        except KeyError:  # not written in the byte alphabet: the library takes such a token as it is
            return token.encode("utf-8")

    return step


def _byte_fallback(_: dict[str, Any]) -> _Step:
    pattern = re.compile(r"<0x([0-9A-Fa-f]{2})>")

    def step(token: str) -> str | bytes:
        match = pattern.fullmatch(token)
        return bytes([int(match[1], 16)]) if match else token

    return step


def _metaspace(part: dict[str, Any]) -> _Step:
    replacement = part.get("replacement", "▁")
    return lambda token: token.replace(replacement, " ")


def _word_piece(part: dict[str, Any]) -> _Step:
    prefix = part.get("prefix", "##")
    return lambda token: token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"


def _suffix(part: dict[str, Any]) -> _Step:
    suffix = part.get("suffix", "</w>")
    return lambda token: token.replace(suffix, " ") if suffix else token


def _replace(part: dict[str, Any]) -> _Step:
    pattern, content = part["pattern"], part["content"]
    if "String" in pattern:
        return lambda token: token.replace(pattern["String"], content)
    regex = re.compile(pattern["Regex"])
    return lambda token: regex.sub(lambda _: content, token)


def _spaces(_: dict[str, Any]) -> _Step:
    return lambda token: f" {token}"


# Decoders by their name in the file. Fuse, Strip and CTC work on whole texts and have no row.
_STEPS: dict[str, Callable[[dict[str, Any]], _Step]] = {
    "BPEDecoder": _suffix,
    "ByteFallback": _byte_fallback,
    "ByteLevel": _byte_level,
    "Metaspace": _metaspace,
    "Replace": _replace,
    "Spaces": _spaces,
    "WordPiece": _word_piece,
}
