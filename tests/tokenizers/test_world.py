"""The World tokenizer against the official one, which comes with the `rwkv` package."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rwkv import rwkv_tokenizer

from rookery.errors import TokenizerError
from rookery.tokenizers import WorldTokenizer, world

OFFICIAL = rwkv_tokenizer.TRIE_TOKENIZER(
    str(Path(rwkv_tokenizer.__file__).with_name("rwkv_vocab_v20230424.txt"))
)

TEXTS = [
    "",
    " ",
    "\n\n",
    "User: Hello!\n\nAssistant:",
    "def fibonacci(n):\n\treturn n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "The quick brown fox jumps over the lazy dog. 0123456789 3.14159e-10",
    "敏捷的棕色狐狸跳过了懒狗。速い茶色の狐。빠른 갈색 여우",
    "Быстрая лиса, ταχύς αλεπού, שועל מהיר, الثعلب السريع, तेज़ लोमड़ी, สุนัขจิ้งจอก",
    "naïve café Ångström ﬁ e\u0301 ＦＵＬＬ",
    "😀👩‍👩‍👧‍👦🏳️‍🌈🇺🇦 🦊𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𒀀",
    "".join(map(chr, range(0x20))) + "\x7f\x80\x9f\ufeff\ufffd\u2028",
    "a" * 1000 + " " * 1000 + "\n" * 100 + "-" * 500,
    "<|endoftext|></s><s>\0",
    "\U0010ffff\U000e0001\ue000",
]


ENCODERS = {
    "here": lambda text: world._greedy().encode(text.encode("utf-8")),
    "pyrwkv": lambda text: world._official()(text),
    "either": WorldTokenizer().encode,
}
every_encoder = pytest.mark.parametrize("encoder", ENCODERS)


@every_encoder
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_official_tokenizer(text: str, encoder: str) -> None:
    tokens = ENCODERS[encoder](text)
    assert tokens == OFFICIAL.encode(text)
    assert WorldTokenizer().decode(tokens) == text


# Runs of one character, of which the vocabulary has many lengths, and tokens that lie across others.
RUNS = st.tuples(st.sampled_from(" \n\t-=*#/a0\u3000。😀"), st.integers(1, 200)).map(
    lambda run: run[0] * run[1]
)
PIECES = st.integers(1, 65529).map(lambda token: OFFICIAL.idx2token[token].decode("utf-8", errors="ignore"))


@every_encoder
@settings(deadline=None, max_examples=150)
@given(text=st.lists(st.one_of(st.text(max_size=40), RUNS, PIECES), max_size=8).map("".join))
def test_any_text(text: str, encoder: str) -> None:
    tokens = ENCODERS[encoder](text)
    assert tokens == OFFICIAL.encode(text)
    assert WorldTokenizer().decode(tokens) == text


def test_every_token_is_its_own_longest_match() -> None:
    greedy = world._greedy()
    for token, data in OFFICIAL.idx2token.items():
        assert greedy.encode(data) == [token]


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_text_are_encoded_as_well(data: bytes) -> None:
    tokens = world._greedy().encode(data)
    assert b"".join(map(WorldTokenizer().token_bytes, tokens)) == data


def test_a_long_text_goes_through_the_other_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(world, "_official", lambda: lambda text: asked.append(len(text)) or [1])
    monkeypatch.setattr(world, "_SHORT", 1000)
    encoder = world._Encoder()
    short, other = "é" * 250, "x" * 300
    assert encoder.encode(short, short) == OFFICIAL.encode(short)
    assert encoder.encode(other, other) == OFFICIAL.encode(other)
    assert asked == []
    # With this it is more than 1000 bytes in all: a corpus, in however small pieces.
    assert encoder.encode(other, other) == [1]
    assert encoder.encode("x", "x") == [1]
    assert asked == [300, 1]
    assert world._Encoder().encode("x" * 1001, "") == [1]


def test_real_text(shared_data: Path) -> None:
    text = (shared_data / "tinyshakespeare.txt").read_text(encoding="utf-8")[:200_000]
    assert WorldTokenizer().encode(text) == OFFICIAL.encode(text)


def test_every_id_stands_for_the_official_bytes() -> None:
    tokenizer = WorldTokenizer()
    assert tokenizer.vocab_size == 65536
    assert tokenizer.end_of_text == 0
    for token in range(-2, 65540):
        assert tokenizer.token_bytes(token) == OFFICIAL.idx2token.get(token, b"")


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([*TEXTS[3:], " " * 127, "🦊", "\n", "x"]), min_size=1, max_size=12).map("".join),
    st.integers(1, 700),
)
def test_pieces_give_what_the_whole_text_gives(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "_PIECE", size)
        tokens = WorldTokenizer().encode_array(text)
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == WorldTokenizer().encode(text)


def test_an_empty_array() -> None:
    tokens = WorldTokenizer().encode_array("")
    assert tokens.shape == (0,)
    assert tokens.dtype == np.uint16


@pytest.mark.parametrize("encode", [WorldTokenizer.encode, WorldTokenizer.encode_array])
def test_a_lone_surrogate_is_named_with_its_position(encode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "_PIECE", 400)
    with pytest.raises(TokenizerError, match=r"character 2005 .* U\+D83D"):
        encode(WorldTokenizer(), "words " * 333 + "Hi 你好: \ud83d!")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"1",
        b"1 'a'",
        b"1 a 1",
        b"1 'a' 2",
        b"2 'a' 1",
        b"1 '' 0",
        b"1 'a 1",
        b"1 'a', 'b' 2",
        b"1 '\\ud800' 3",
        b"1 '\xff' 1",
        b"x 'a' 1",
    ],
)
def test_a_broken_vocabulary_names_the_file_and_the_line(line: bytes) -> None:
    vocabulary = world.Vocabulary(line + b"\n2 'b' 1\n", "some/file.txt")
    with pytest.raises(TokenizerError, match=r"some/file\.txt: line 1 "):
        vocabulary[1]
    assert vocabulary[2] == b"b"


def test_a_vocabulary_runs_no_code(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    line = f"1 '' + __import__('os').mkdir({str(ran)!r}) + '' 1"
    with pytest.raises(TypeError):
        eval(line[2:-2])  # evaluated, the line makes the folder...
    assert ran.exists()
    ran.rmdir()
    with pytest.raises(TokenizerError):
        world.Vocabulary(line.encode(), "file")[1]
    assert not ran.exists()  # ...and reading the vocabulary does not


def test_lines_may_end_as_on_windows() -> None:
    vocabulary = world.Vocabulary(b"1 'a' 1\r\n2 b'\\xff' 1\r\n", "file")
    assert [vocabulary[1], vocabulary[2]] == [b"a", b"\xff"]
    assert len(vocabulary) == 3


@pytest.mark.parametrize("line", [b"3 'c' 1", b"2 'b' 2", b"2 'b 1", b""])
def test_a_vocabulary_that_is_broken_somewhere_encodes_nothing(line: bytes) -> None:
    with pytest.raises(TokenizerError, match="file: line 2 "):
        world.Vocabulary(b"1 'a' 1\n" + line + b"\n3 '\\n' 1\n", "file").all()


def test_a_vocabulary_without_a_byte_is_no_vocabulary() -> None:
    tokens = [bytes([byte]) for byte in range(255)]
    with pytest.raises(TokenizerError, match="no token for the byte 255"):
        world.GreedyEncoder(tokens)
    assert world.GreedyEncoder([*tokens, b"\xff"]).encode(b"a\xff") == [98, 256]


@pytest.fixture
def fresh_caches():
    caches = [world._vocabulary, world._encoder, world._greedy, world._official]
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("fresh_caches")
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pyrwkv_tokenizer", None)
    with pytest.raises(TokenizerError, match="pip install pyrwkv-tokenizer"):
        WorldTokenizer().token_bytes(1)
    for text in ("x", "x" * (world._SHORT + 1)):
        with pytest.raises(TokenizerError, match="pip install pyrwkv-tokenizer"):
            WorldTokenizer().encode(text)


@pytest.mark.usefixtures("fresh_caches")
def test_a_missing_vocabulary_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "_FILE", "absent.txt")
    with pytest.raises(TokenizerError, match=r"absent\.txt: No such file"):
        WorldTokenizer().token_bytes(1)


def test_a_prompt_loads_no_other_encoder() -> None:
    code = (
        "import sys; from rookery.tokenizers import named; assert named('world').decode([33]) == ' '; "
        "assert named('world').encode('Hello world') == [33155, 40213]; "
        "print([m for m in ('torch', 'tokenizers', 'pyrwkv_tokenizer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
