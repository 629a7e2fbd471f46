"""Bytes and characters as tokens."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery.errors import TokenizerError
from rookery.tokenizers import ByteTokenizer, CharTokenizer


@given(st.text())
def test_bytes_are_those_of_utf8(text: str) -> None:
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode(text)
    assert tokens == list(text.encode())
    assert tokenizer.decode(tokens) == text
    array = tokenizer.encode_array(text)
    assert array.dtype == np.uint16
    assert array.tolist() == tokens


@given(st.binary())
def test_bytes_that_are_no_text(data: bytes) -> None:
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode_bytes(data)
    assert tokens.dtype == np.uint16
    assert b"".join(map(tokenizer.token_bytes, tokens.tolist())) == data


def test_byte_zero_is_a_byte_and_the_end_of_text() -> None:
    tokenizer = ByteTokenizer()
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (256, 0)
    assert tokenizer.token_bytes(0) == b"\0"
    assert [tokenizer.token_bytes(token) for token in (-1, 256)] == [b"", b""]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("abc")])
def test_a_lone_surrogate_is_an_error(tokenizer) -> None:
    for encode in (tokenizer.encode, tokenizer.encode_array):
        with pytest.raises(TokenizerError, match=r"character 1 of the text .*U\+DC80"):
            encode("a\udc80")


@given(st.text(min_size=1))
def test_characters_of_a_corpus(text: str) -> None:
    tokenizer = CharTokenizer.from_corpus(text)
    assert tokenizer.alphabet == "".join(sorted(set(text)))
    assert tokenizer.vocab_size == len(set(text))
    assert tokenizer.end_of_text is None
    tokens = tokenizer.encode(text)
    assert tokens == [sorted(set(text)).index(char) for char in text]
    assert tokenizer.decode(tokens) == text
    array = tokenizer.encode_array(text)
    assert array.dtype == np.uint16
    assert array.tolist() == tokens


def test_tinyshakespeare_has_65_characters(shared_data) -> None:
    text = (shared_data / "tinyshakespeare.txt").read_text(encoding="utf-8")
    tokenizer = CharTokenizer.from_corpus(text)
    assert tokenizer.vocab_size == 65
    assert tokenizer.decode(tokenizer.encode_array(text).tolist()) == text


def test_a_large_alphabet_takes_uint32() -> None:
    alphabet = "".join(chr(code) for code in range(0x10000, 0x10000 + 70_000))
    tokens = CharTokenizer(alphabet).encode_array(alphabet[-1] + alphabet[0])
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == [69_999, 0]


@pytest.mark.parametrize("char", ["z", "!", "é", "🦊", "\0"])
def test_an_unknown_character_is_named_with_its_position(char: str) -> None:
    tokenizer = CharTokenizer.from_corpus("hello")
    message = rf"character 3 of the text is {re.escape(repr(char))} \(U\+{ord(char):04X}\)"
    for encode in (tokenizer.encode, tokenizer.encode_array):
        with pytest.raises(TokenizerError, match=message):
            encode("hel" + char + "o~")


@pytest.mark.parametrize(
    ("alphabet", "message"), [("", "empty"), ("abca", "'a' twice"), ("a\ud800", "U\\+D800")]
)
def test_an_alphabet_that_cannot_be(alphabet: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        CharTokenizer(alphabet)


@pytest.mark.parametrize(("text", "message"), [("", "empty"), ("a\ud800", "character 1 .*U\\+D800")])
def test_a_corpus_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        CharTokenizer.from_corpus(text)


def test_nothing_to_encode() -> None:
    for tokenizer in (ByteTokenizer(), CharTokenizer("a")):
        assert tokenizer.encode("") == []
        assert tokenizer.encode_array("").shape == (0,)
        assert tokenizer.decode([]) == ""
