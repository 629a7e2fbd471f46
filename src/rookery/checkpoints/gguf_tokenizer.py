"""The tokenizer of a GGUF file.

Tokenizers whose ids are byte strings found by the greedy longest match (World, and the single bytes and
characters of small models) are written as llama.cpp's tokenizer model ``rwkv``, so that llama.cpp makes the
same ids: every id's bytes, escaped as Python's ``repr`` does. As llama.cpp's own conversion has it, World's
id 0 is the control token ``<s>`` and ids without text are ``[PADi]``, unused. Others are written as
``no_vocab``, which llama.cpp takes with ids alone. Whatever it is, ``rookery.tokenizer`` holds our own
specification.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from rookery.checkpoints import tokenizer_spec
from rookery.checkpoints.gguf_container import ArrayEntry, GGUFFile
from rookery.errors import CheckpointError, TokenizerError

__all__ = ["SPEC_KEY", "read_tokenizer", "tokenizer_metadata"]

SPEC_KEY = "rookery.tokenizer"

_MODEL = "tokenizer.ggml.model"
_TOKENS = "tokenizer.ggml.tokens"
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5

_WORLD = {"kind": "world"}
_WORLD_SIZE = 65536
_WORLD_IDS = 65530

# SHA-256 of World's first 65530 texts, as the file has them with their lengths: comparing them one by one
# would take longer than loading a small model. A test computes it from the vocabulary.
_WORLD_DIGEST = "884b7590f94884b8b13aa2a9492e00c786fd7df9c1dfa875cd0ee805f3d8b64c"

# Ids that are bytes, found by the longest match.
_BYTE_STRINGS = ("world", "bytes", "chars")


def tokenizer_metadata(spec: dict[str, Any] | None, vocab_size: int, path: Path) -> dict[str, Any]:
    """The metadata for a tokenizer; without one, a vocabulary of 65536 is World's, as in llama.cpp.

    Raises:
        CheckpointError: the specification is broken.
    """
    from rookery import tokenizers

    if spec is None and vocab_size == _WORLD_SIZE:
        spec = _WORLD
    own = {SPEC_KEY: tokenizer_spec.encode(spec)}
    if spec is None or spec.get("kind") not in _BYTE_STRINGS:
        return {_MODEL: "no_vocab", **own}
    try:
        tokenizer = tokenizers.from_spec(spec)
        texts = [repr(tokenizer.token_bytes(token))[2:-1].encode() for token in range(vocab_size)]
    except TokenizerError as error:
        raise CheckpointError(path, f"its tokenizer cannot be written: {error}") from error
    types = [_NORMAL if text else _UNUSED for text in texts]
    texts = [text or b"[PAD%d]" % token for token, text in enumerate(texts)]
    if spec == _WORLD:
        texts[0], types[0] = b"<s>", _CONTROL
    metadata = {_MODEL: "rwkv", _TOKENS: texts, "tokenizer.ggml.token_type": types, **own}
    end = tokenizer.end_of_text
    if end is not None:
        metadata |= {"tokenizer.ggml.bos_token_id": end, "tokenizer.ggml.eos_token_id": end}
    return metadata


def read_tokenizer(file: GGUFFile) -> dict[str, Any] | None:
    """The specification of a file's tokenizer; None where it is unknown here.

    Raises:
        CheckpointError: our own specification is there, and broken.
    """
    own = file.metadata.get(SPEC_KEY)
    if isinstance(own, str):
        return tokenizer_spec.decode(own, file.path)
    tokens = file.metadata.get(_TOKENS)
    if file.metadata.get(_MODEL) == "rwkv" and isinstance(tokens, ArrayEntry):
        return _WORLD if _is_world(file, tokens) else None
    return None


def _is_world(file: GGUFFile, tokens: ArrayEntry) -> bool:
    if tokens.count < _WORLD_IDS:
        return False
    digest = hashlib.sha256()
    for _, text in zip(range(_WORLD_IDS), file.strings(tokens), strict=False):
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest() == _WORLD_DIGEST
