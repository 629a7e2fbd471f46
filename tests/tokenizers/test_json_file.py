"""Tokenizers of the `tokenizers` library; small ones are trained here."""

from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from rookery.errors import TokenizerError
from rookery.tokenizers import JsonTokenizer

CORPUS = ["def main():\n    return 'hello world'\n", "naïve café 你好世界 🦊🦊", "The fox, the fox!  "] * 4


def byte_level() -> tokenizers.Tokenizer:
    """As the 20B tokenizer: byte-level BPE, two special tokens first, runs of spaces added last."""
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    made.add_tokens([AddedToken(" " * n, normalized=False) for n in (4, 3, 2)])
    return made


def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama: sentencepiece BPE with a meta space and bytes for unknown characters."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{value:02X}>": 3 + value for value in range(256)}
    for token in ["▁", "h", "e", "l", "o", "▁h", "he", "ll", "llo", "hello", "▁hello", "你"]:
        vocabulary[token] = len(vocabulary)
    merges = [("h", "e"), ("l", "l"), ("ll", "o"), ("he", "llo"), ("▁", "hello"), ("▁", "h")]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


BYTE_LEVEL = byte_level()
OURS = JsonTokenizer(BYTE_LEVEL.to_str())


@settings(deadline=None)
@given(st.text())
def test_byte_level_ids_are_the_library_s(text: str) -> None:
    assume("<|" not in text)  # the library makes a special token of one that is spelled out
    tokens = OURS.encode(text)
    assert tokens == BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    assert OURS.decode(tokens) == normalizers.NFC().normalize_str(text)


@settings(deadline=None)
@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1)))
def test_byte_level_text_of_any_ids_is_the_library_s(tokens: list[int]) -> None:
    assert OURS.decode(tokens) == BYTE_LEVEL.decode(tokens, skip_special_tokens=True)


def test_special_tokens_are_no_text_and_text_is_no_special_token() -> None:
    assert OURS.end_of_text == 0
    assert OURS.token_bytes(0) == OURS.token_bytes(1) == b""
    text = "a<|endoftext|>b<|padding|>"
    tokens = OURS.encode(text)
    assert not {0, 1} & set(tokens)
    assert OURS.decode(tokens) == text


def test_added_tokens_stand_for_their_text() -> None:
    four = BYTE_LEVEL.token_to_id("    ")
    assert four in OURS.encode("x    y")
    assert OURS.token_bytes(four) == b"    "
    assert OURS.vocab_size == max(BYTE_LEVEL.get_vocab().values()) + 1


def test_an_added_token_of_byte_letters_is_not_read_as_bytes() -> None:
    made = byte_level()
    made.add_tokens([AddedToken("é", normalized=False)])
    ours = JsonTokenizer(made.to_str())
    assert ours.decode(ours.encode("café")) == "café"


def library_ids(rules: dict) -> set[int]:
    return set(tokenizers.Tokenizer.from_str(json.dumps(rules)).get_vocab().values())


def test_holes_and_ids_out_of_range_are_no_text() -> None:
    rules = json.loads(BYTE_LEVEL.to_str())
    size = OURS.vocab_size
    rules["model"]["vocab"]["Ġhole"] = size + 5
    ours = JsonTokenizer(json.dumps(rules))
    assert ours.vocab_size == size + 6
    assert ours.token_bytes(size + 5) == b" hole"
    used = library_ids(rules)
    holes = [token for token in range(-1, size + 7) if token not in used]
    assert len(holes) > 5
    assert [ours.token_bytes(token) for token in holes] == [b""] * len(holes)
    # The library numbers the added tokens of such a file anew.
    assert ours.decode(ours.encode("a   b    c")) == "a   b    c"


def test_a_post_processor_adds_nothing() -> None:
    made = byte_level()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    assert made.encode("hello").ids[0] == 0
    assert JsonTokenizer(made.to_str()).encode("hello") == OURS.encode("hello")


def test_truncation_and_padding_of_the_file_are_off() -> None:
    made = byte_level()
    made.enable_truncation(3)
    made.enable_padding(length=64)
    text = "def main():\n    return 'hello world'\n"
    assert JsonTokenizer(made.to_str()).encode(text) == OURS.encode(text)


def test_a_byte_level_file_without_a_decoder_is_byte_level() -> None:
    rules = json.loads(BYTE_LEVEL.to_str())
    rules["decoder"] = None
    ours = JsonTokenizer(json.dumps(rules))
    assert ours.decode(ours.encode("naïve 你好\n")) == "naïve 你好\n"


@pytest.mark.parametrize("text", ["hello hello", "hello 你好 🦊", "h\tx\n", "héllo"])
def test_byte_fallback(text: str) -> None:
    made = byte_fallback()
    ours = JsonTokenizer(made.to_str())
    tokens = ours.encode(text)
    assert tokens == made.encode(text, add_special_tokens=False).ids
    # The library strips the space that the file's normalizer prepends; a stream cannot know its beginning.
    assert ours.decode(tokens) == " " + text == " " + made.decode(tokens)


def test_bytes_of_byte_fallback() -> None:
    ours = JsonTokenizer(byte_fallback().to_str())
    assert [ours.token_bytes(3 + value) for value in range(256)] == [bytes([value]) for value in range(256)]
    assert ours.end_of_text == 2
    assert [ours.token_bytes(token) for token in (0, 1, 2)] == [b"", b"", b""]


def word_level(decoder: object | None, vocabulary: dict[str, int]) -> JsonTokenizer:
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    if decoder is not None:
        made.decoder = decoder
    return JsonTokenizer(made.to_str())


@pytest.mark.parametrize(
    ("decoder", "tokens", "text"),
    [
        (decoders.Metaspace(), ["▁the", "▁fo", "x"], " the fox"),
        (decoders.WordPiece(), ["the", "fo", "##x"], " the fox"),
        (decoders.BPEDecoder(), ["the</w>", "fo", "x</w>"], "the fox "),
        (decoders.Replace("_", " "), ["the_", "fox"], "the fox"),
        (decoders.Replace(tokenizers.Regex("[_~]+"), " "), ["the_~", "fox"], "the fox"),
        (decoders.Fuse(), ["the", "fox"], "thefox"),
        (decoders.Sequence([decoders.Replace("^", "▁"), decoders.Metaspace()]), ["^the", "▁fox"], " the fox"),
        (None, ["the", "fox"], " the fox"),
    ],
)
def test_decoders(decoder: object | None, tokens: list[str], text: str) -> None:
    ours = word_level(decoder, {token: position for position, token in enumerate([*tokens, "[UNK]"])})
    assert ours.decode(range(len(tokens))) == text


def test_no_end_of_text() -> None:
    assert word_level(None, {"a": 0, "[UNK]": 1}).end_of_text is None


def test_a_lone_surrogate_is_an_error() -> None:
    with pytest.raises(TokenizerError, match=r"character 2 of the text .*U\+D800"):
        OURS.encode("hi\ud800")


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "not JSON", '{"model": 3}', '{"version": "1.0"}'])
def test_what_is_no_tokenizer(text: str) -> None:
    with pytest.raises(TokenizerError, match="not the JSON of a tokenizer"):
        JsonTokenizer(text)


def test_a_decoder_that_is_beyond_python_s_regular_expressions() -> None:
    with pytest.raises(TokenizerError, match="not the JSON of a tokenizer"):
        word_level(decoders.Replace(tokenizers.Regex(r"\p{L}(?~a)"), ""), {"a": 0, "[UNK]": 1})


def test_a_tokenizer_that_was_never_trained() -> None:
    with pytest.raises(TokenizerError, match="empty vocabulary"):
        JsonTokenizer(tokenizers.Tokenizer(models.BPE()).to_str())
