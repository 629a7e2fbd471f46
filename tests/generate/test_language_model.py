from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rookery
from rookery import checkpoints
from rookery.errors import CheckpointError, ConfigError, RookeryError, StateError, TokenizerError
from rookery.generate import LanguageModel, SamplingParams
from rookery.state import State
from rookery.tokenizers import ByteTokenizer, WorldTokenizer

VERSIONS = ["4", "5.0", "5.1", "5.2", "6", "7"]


@pytest.mark.parametrize("version", VERSIONS)
def test_ints_in_float32_out_and_the_state_carries(model_file, version):
    model = rookery.load(model_file(version))
    tokens = list(b"time-sequential")
    whole, whole_state = model(tokens)
    assert whole.dtype == np.float32
    assert whole.shape == (len(tokens), 256)
    state, parts = None, []
    for cut in (slice(0, 1), slice(1, 9), slice(9, None)):
        logits, state = model(tokens[cut], state)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-5 * np.abs(whole).max())
    for part, expected in zip(state, whole_state, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-5)


def test_a_state_is_not_written_into_and_may_be_of_numpy_arrays(model):
    _, state = model([1, 2, 3])
    arrays = model.backend.to_numpy(state)
    kept = State(*(part.copy() for part in arrays))
    first, _ = model([4, 5], state)
    again, _ = model([4, 5], state)
    from_arrays, _ = model([4, 5], arrays)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, from_arrays)
    for part, before in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(part, before)


@pytest.mark.parametrize(
    "tokens", [range(3), (0, 1, 2), np.arange(3), np.arange(3, dtype=np.uint16), [np.int32(0), 1, 2]]
)
def test_any_sequence_of_integers_will_do(model, tokens):
    np.testing.assert_array_equal(model(tokens)[0], model([0, 1, 2])[0])


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        ([], "at least one token"),
        ([1, 256], "token 256 at position 1 is outside of the vocabulary of 256"),
        ([-1], "token -1 at position 0"),
        ([2**70], "sequence of integers"),
        ([1.5], "sequence of integers"),
        ([[1, 2]], "sequence of integers"),
        (None, "sequence of integers"),
        ("text", "token ids, not text"),
    ],
)
def test_tokens_that_are_none(model, tokens, problem):
    with pytest.raises(ConfigError, match=problem):
        model(tokens)


def test_a_state_of_another_model(model, model_file):
    _, state = rookery.load(model_file("6"))([1])
    small = State(*(part[:1] for part in state))
    two = State(*(np.repeat(part, 2, 1) for part in state))
    for wrong in (small, tuple(state), two):
        with pytest.raises(StateError):
            model([1], wrong)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("field", State._fields)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite(model_file, version, field, value):
    model = rookery.load(model_file(version))
    arrays = model.backend.to_numpy(model([1, 2])[1])
    getattr(arrays, field)[0, 0, 0] = value
    with pytest.raises(StateError, match=rf"state\.{field} holds NaN or infinity"):
        model([3], arrays)


def test_weights_that_are_not_finite(model_file, tmp_path):
    checkpoint = checkpoints.load(model_file())
    tensors = checkpoint.tensors | {"ln_out.bias": np.full(32, np.nan, np.float32)}
    broken = checkpoints.Checkpoint(config=checkpoint.config, tensors=tensors)
    checkpoints.save(broken, tmp_path / "nan.safetensors")
    with pytest.raises(StateError, match="its weights do"):
        rookery.load(tmp_path / "nan.safetensors")([1])


def test_the_same_seed_gives_the_same_text(model):
    options = {"max_tokens": 40, "temperature": 0.9, "top_p": 0.95, "presence_penalty": 0.3}
    texts = [model.generate("It was", seed=seed, **options) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert "".join(model.stream("It was", seed=1, **options)) == texts[0]
    assert model.generate(list(b"It was"), seed=1, **options) == texts[0]
    assert model.generate("It was", sampling=SamplingParams(seed=1, **options)) == texts[0]


def test_greedy_text_is_the_likeliest_tokens(model):
    tokens = list(b"It was")
    written = []
    for _ in range(12):
        written.append(int(model(tokens + written)[0][-1, 1:].argmax()) + 1)
    text = model.generate("It was", temperature=0, max_tokens=12, banned_tokens=[0])
    # A character that the last token leaves unfinished is not returned.
    expected = bytes(written).decode("utf-8", errors="replace")
    assert text in (expected, expected.removesuffix("\ufffd"))


def test_an_empty_prompt_begins_a_document(model):
    assert model.generate("", seed=1, max_tokens=20) == model.generate([0], seed=1, max_tokens=20)


def test_a_mistake_shows_where_it_is_made(model):
    with pytest.raises(ConfigError, match="no sampling parameter 'temprature'"):
        model.stream("x", temprature=1)
    with pytest.raises(ConfigError, match="temperature must be"):
        model.stream("x", temperature=-1)
    with pytest.raises(ConfigError, match="token 300"):
        model.stream([300])


def test_the_tokenizer_of_the_file_goes_before_the_guess(model_file):
    assert isinstance(rookery.load(model_file()).tokenizer, ByteTokenizer)
    assert isinstance(rookery.load(model_file(tokenizer=False)).tokenizer, ByteTokenizer)
    assert isinstance(rookery.load(model_file(vocab_size=65536, tokenizer=False)).tokenizer, WorldTokenizer)


def test_a_model_without_a_tokenizer(model_file):
    path = model_file(vocab_size=300, tokenizer=False)
    model = rookery.load(path)
    assert model.tokenizer is None
    assert model([299])[0].shape == (1, 300)
    with pytest.raises(TokenizerError, match=r"--tokenizer"):
        model.generate("x")
    assert rookery.load(path, tokenizer="bytes").generate("x", max_tokens=5, seed=1)
    assert rookery.load(path, tokenizer=ByteTokenizer()).tokenizer.kind == "bytes"


def test_a_tokenizer_that_is_too_large(model_file):
    with pytest.raises(TokenizerError, match="the tokenizer has 65536 ids, but the model only 256"):
        rookery.load(model_file(), tokenizer="world")


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(CheckpointError, match="nothing-here"):
        rookery.load(tmp_path / "nothing-here.pth")


def test_the_repr_says_what_it_is(model):
    assert repr(model).startswith("LanguageModel(RWKV-7, 2 layers, width 32, vocabulary 256, ByteTokenizer")


@settings(max_examples=60, deadline=None)
@given(tokens=st.lists(st.integers(0, 255), min_size=1, max_size=30), seed=st.integers(0, 2**64 - 1))
def test_whatever_is_read_whole_characters_are_written(model, tokens, seed):
    pieces = list(model.stream(tokens, seed=seed, max_tokens=12, temperature=3.0, top_p=1.0))
    assert all(pieces)
    "".join(pieces).encode("utf-8")


def test_errors_are_all_of_one_tree(model):
    assert issubclass(ConfigError, RookeryError)
    assert isinstance(model, LanguageModel)
