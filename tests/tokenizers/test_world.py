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


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_official_tokenizer(text: str) -> None:
    tokenizer = WorldTokenizer()
    tokens = tokenizer.encode(text)
    assert tokens == OFFICIAL.encode(text)
    assert tokenizer.decode(tokens) == text


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    tokenizer = WorldTokenizer()
    tokens = tokenizer.encode(text)
    assert tokens == OFFICIAL.encode(text)
    assert tokenizer.decode(tokens) == text


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


@pytest.fixture
def fresh_caches():
    world._vocabulary.cache_clear()
    world._encoder.cache_clear()
    yield
    world._vocabulary.cache_clear()
    world._encoder.cache_clear()


@pytest.mark.usefixtures("fresh_caches")
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pyrwkv_tokenizer", None)
    with pytest.raises(TokenizerError, match="pip install pyrwkv-tokenizer"):
        WorldTokenizer().token_bytes(1)
    with pytest.raises(TokenizerError, match="pip install pyrwkv-tokenizer"):
        WorldTokenizer().encode("x")


@pytest.mark.usefixtures("fresh_caches")
def test_a_missing_vocabulary_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "_FILE", "absent.txt")
    with pytest.raises(TokenizerError, match=r"absent\.txt: No such file"):
        WorldTokenizer().token_bytes(1)


def test_decoding_loads_no_encoder() -> None:
    code = (
        "import sys; from rookery.tokenizers import named; assert named('world').decode([33]) == ' '; "
        "print([m for m in ('torch', 'tokenizers', 'pyrwkv_tokenizer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
