"""Text to token ids and back, and text from a stream of ids.

    tokenizer = named("world")                   or "bytes", or a path of a tokenizer.json
    tokens = tokenizer.encode("The quick brown fox")
    stream = StreamDecoder(tokenizer)
    for token in tokens:
        print(stream.push(token), end="")

A spec is a dictionary for JSON that travels with a model and holds the whole tokenizer; its "kind" is one of

    {"kind": "world"}                            65536 ids, 0 = end of text
    {"kind": "bytes"}                            256 ids, 0 = end of text
    {"kind": "chars", "alphabet": "\\n !$&..."}   no end of text
    {"kind": "json", "json": "{...}"}            a file of the `tokenizers` library
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rookery.errors import TokenizerError
from rookery.tokenizers.base import StreamDecoder, Tokenizer
from rookery.tokenizers.byte import ByteTokenizer
from rookery.tokenizers.chars import CharTokenizer
from rookery.tokenizers.json_file import JsonTokenizer
from rookery.tokenizers.world import WorldTokenizer

__all__ = [
    "ByteTokenizer",
    "CharTokenizer",
    "JsonTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "WorldTokenizer",
    "from_spec",
    "guess",
    "named",
]

# Kind -> constructor and the one entry of the spec that it takes.
_KINDS: dict[str, tuple[Callable[..., Tokenizer], str | None]] = {
    "world": (WorldTokenizer, None),
    "bytes": (ByteTokenizer, None),
    "chars": (CharTokenizer, "alphabet"),
    "json": (JsonTokenizer, "json"),
}

# Those that need nothing but their name.
_NAMED: dict[str, Callable[[], Tokenizer]] = {"world": WorldTokenizer, "bytes": ByteTokenizer}

# Vocabularies that published models with no tokenizer beside them use.
_BY_SIZE: dict[int, str] = {65536: "world", 256: "bytes"}


def from_spec(spec: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that ``Tokenizer.to_spec`` described.

    Raises:
        TokenizerError: the kind is unknown, or what it needs is missing or broken.
    """
    kind = spec.get("kind") if isinstance(spec, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise TokenizerError(f"a tokenizer spec has the kind {', '.join(_KINDS)}, not {kind!r}")
    make, entry = _KINDS[kind]
    if entry is None:
        return make()
    value = spec.get(entry)
    if not isinstance(value, str):
        raise TokenizerError(
            f"a tokenizer spec of kind {kind!r} needs the text {entry!r}, which is not there"
        )
    return make(value)


def named(name_or_path: str | Path) -> Tokenizer:
    """A tokenizer by name ("world", "bytes") or from a file.

    Args:
        name_or_path: a name; or the path of a tokenizer.json of the `tokenizers` library, of a folder that
            has one, or of a saved spec.

    Raises:
        TokenizerError: there is neither such a name nor such a file, or the file is no tokenizer.
    """
    if name_or_path in _NAMED:
        return _NAMED[str(name_or_path)]()
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = " or ".join(repr(name) for name in _NAMED)
        raise TokenizerError(
            f"{path}: no such tokenizer; give {names}, or the path of a tokenizer.json"
        ) from None
    except OSError as error:
        raise TokenizerError(f"{path}: cannot read the tokenizer: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not the JSON of a tokenizer: not UTF-8 text") from error
    try:
        return from_spec(_spec_of(text))
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error


def guess(vocab_size: int) -> Tokenizer | None:
    """The tokenizer that a model of this vocabulary most likely has, or None: 65536 is World, 256 bytes."""
    name = _BY_SIZE.get(vocab_size)
    return None if name is None else _NAMED[name]()


def _spec_of(text: str) -> Mapping[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if isinstance(content, dict) and "kind" in content:
        return content
    return {"kind": "json", "json": text}
