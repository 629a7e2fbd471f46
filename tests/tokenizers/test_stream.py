"""Text from a stream of ids: whole characters, whatever the ids."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery.tokenizers import ByteTokenizer, CharTokenizer, StreamDecoder, Tokenizer, WorldTokenizer

TOKENIZERS = [WorldTokenizer(), ByteTokenizer(), CharTokenizer("añ🦊")]

# Ids of single bytes and of pieces of characters are rare in World; they are where decoding can go wrong.
WORLD_PARTS = [token for token in range(65536) if any(b >= 0x80 for b in TOKENIZERS[0].token_bytes(token))][
    :600
]
IDS = st.one_of(st.integers(-(2**70), 2**70), st.integers(0, 256), st.sampled_from(WORLD_PARTS))


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: tokenizer.kind)
@settings(deadline=None, max_examples=200)
@given(tokens=st.lists(IDS))
def test_any_ids_give_what_decoding_the_whole_gives(tokenizer: Tokenizer, tokens: list[int]) -> None:
    stream = StreamDecoder(tokenizer)
    pieces = [stream.push(token) for token in tokens]
    assert len(stream.pending) <= 3
    text = "".join(pieces) + stream.flush()
    assert text == tokenizer.decode(tokens)
    assert text == b"".join(map(tokenizer.token_bytes, tokens)).decode("utf-8", errors="replace")
    assert stream.pending == b""
    assert stream.flush() == ""


@settings(deadline=None)
@given(st.text())
def test_text_arrives_as_soon_as_its_last_byte(text: str) -> None:
    stream = StreamDecoder(ByteTokenizer())
    for char in text:
        *first, last = char.encode()
        assert [stream.push(byte) for byte in first] == [""] * len(first)
        assert stream.pending == bytes(first)
        assert stream.push(last) == char
    assert stream.flush() == ""


def test_a_text_that_ends_inside_a_character() -> None:
    stream = StreamDecoder(ByteTokenizer())
    assert [stream.push(byte) for byte in "🦊".encode()[:3]] == ["", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.push(0x41) == "A"


def test_a_byte_order_mark_is_text() -> None:
    stream = StreamDecoder(ByteTokenizer())
    assert "".join(map(stream.push, "\ufeffa".encode())) == "\ufeffa"


def test_a_fork_goes_on_by_itself() -> None:
    stream = StreamDecoder(ByteTokenizer())
    first, second, third, last = "🦊".encode()
    for byte in (first, second, third):
        stream.push(byte)
    fork = stream.fork()
    assert fork.push(last) == "🦊"
    assert stream.pending == bytes([first, second, third])
    assert stream.push(0x41) == "\ufffdA"
    assert fork.pending == b""
