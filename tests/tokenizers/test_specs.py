"""Finding a tokenizer: by its spec, by a name or file, by the size of a vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers as library
from tokenizers import models

from rookery import tokenizers
from rookery.errors import TokenizerError
from rookery.tokenizers import ByteTokenizer, CharTokenizer, JsonTokenizer, Tokenizer, WorldTokenizer

JSON = library.Tokenizer(models.WordLevel({"a": 0, "é🦊": 1, "[UNK]": 2}, unk_token="[UNK]")).to_str()


@pytest.mark.parametrize(
    "tokenizer",
    [WorldTokenizer(), ByteTokenizer(), CharTokenizer.from_corpus("añ🦊\n\0"), JsonTokenizer(JSON)],
    ids=lambda tokenizer: tokenizer.kind,
)
def test_a_spec_survives_json(tokenizer: Tokenizer) -> None:
    spec = json.loads(json.dumps(tokenizer.to_spec()))
    again = tokenizers.from_spec(spec)
    assert type(again) is type(tokenizer)
    assert again.to_spec() == spec
    assert again.kind == spec["kind"]
    assert (again.vocab_size, again.end_of_text) == (tokenizer.vocab_size, tokenizer.end_of_text)
    ids = range(min(tokenizer.vocab_size, 500))
    assert [again.token_bytes(token) for token in ids] == [tokenizer.token_bytes(token) for token in ids]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "world, bytes, chars, json, not None"),
        ({"kind": "sentencepiece"}, "world, bytes, chars, json, not 'sentencepiece'"),
        ({"kind": ["world"]}, "not \\['world'\\]"),
        ([], "not None"),
        ({"kind": "chars"}, "needs the text 'alphabet'"),
        ({"kind": "chars", "alphabet": ["a"]}, "needs the text 'alphabet'"),
        ({"kind": "chars", "alphabet": ""}, "empty"),
        ({"kind": "json"}, "needs the text 'json'"),
        ({"kind": "json", "json": "{}"}, "not the JSON of a tokenizer"),
    ],
)
def test_a_broken_spec(spec, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        tokenizers.from_spec(spec)


def test_names() -> None:
    assert isinstance(tokenizers.named("world"), WorldTokenizer)
    assert isinstance(tokenizers.named("bytes"), ByteTokenizer)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(JSON, encoding="utf-8")
    for where in (path, str(path), tmp_path):
        tokenizer = tokenizers.named(where)
        assert isinstance(tokenizer, JsonTokenizer)
        assert tokenizer.token_bytes(1) == " é🦊".encode()
    saved = tmp_path / "model.tokenizer.json"
    saved.write_text(json.dumps(CharTokenizer("abc").to_spec()), encoding="utf-8")
    assert tokenizers.named(saved).encode("cab") == [2, 0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "not the JSON of a tokenizer"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a vocabulary", "not the JSON of a tokenizer"),
        (b'{"kind": "words"}', "not 'words'"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=rf"some\.json: .*{message}"):
        tokenizers.named(path)


@pytest.mark.parametrize("name", ["word", "World", "chars", "", "nowhere/tokenizer.json"])
def test_a_name_that_does_not_exist_lists_those_that_do(name: str) -> None:
    with pytest.raises(TokenizerError, match="no such tokenizer; give 'world' or 'bytes', or the path"):
        tokenizers.named(name)


def test_a_path_below_a_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TokenizerError, match="Not a directory"):
        tokenizers.named(tmp_path / "file" / "tokenizer.json")


def test_guesses() -> None:
    assert isinstance(tokenizers.guess(65536), WorldTokenizer)
    assert isinstance(tokenizers.guess(256), ByteTokenizer)
    assert tokenizers.guess(50277) is None


def test_what_is_public() -> None:
    assert tokenizers.__all__ == sorted(tokenizers.__all__)
    assert {type(tokenizer).kind for tokenizer in (WorldTokenizer(), ByteTokenizer())} == {"world", "bytes"}
    assert repr(CharTokenizer("ab")) == "CharTokenizer(vocab_size=2)"
