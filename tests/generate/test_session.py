from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rookery
from rookery.errors import ConfigError, StateError
from rookery.generate import MAX_UNDO, Backend, LanguageModel, Sampler, SamplingParams, Session
from rookery.state import State
from rookery.tokenizers import CharTokenizer

VERSIONS = ["4", "5.0", "5.1", "5.2", "6", "7"]
# Printable ASCII, so that a random byte model writes text that can be cut anywhere.
UNPRINTABLE = tuple(token for token in range(256) if not 32 <= token < 127)
PRINTABLE = {"banned_tokens": UNPRINTABLE, "top_p": 1.0}


def assert_same_state(session: Session, tokens: Sequence[int]) -> None:
    """The session has read these tokens and no others."""
    expected_logits, expected = session.model(tokens)
    for part, wanted in zip((*session.state, session.logits), (*expected, expected_logits[-1]), strict=True):
        np.testing.assert_allclose(part, wanted, rtol=1e-3, atol=1e-4)
    assert session.position == len(tokens)


@pytest.fixture(scope="module")
def world_model(model_file) -> LanguageModel:
    return rookery.load(model_file(vocab_size=65536))


@pytest.mark.parametrize("version", VERSIONS)
def test_text_is_sampled_from_the_logits_of_what_was_read(model_file, version):
    model = rookery.load(model_file(version))
    params = SamplingParams(seed=3, frequency_penalty=0.5, max_tokens=10, **PRINTABLE)
    sampler, tokens = Sampler(params), list(b"Once")
    for _ in range(10):
        token = sampler.sample(model(tokens)[0][-1])
        sampler.observe(token)
        tokens.append(token)
    session = model.session(params)
    session.feed("Once")
    assert session.generate() == bytes(tokens[4:]).decode()
    assert session.finish_reason == "max_tokens"
    assert session.generated == 10
    assert_same_state(session, tokens)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_calls_continue_each_other(model, cuts):
    options = {"seed": 5, "presence_penalty": 0.4, "frequency_penalty": 0.2, "temperature": 1.3}
    whole, parts = model.session(**options), model.session(**options)
    whole.feed("x")
    parts.feed("x")
    text = "".join(parts.generate(max_tokens=cut) for cut in cuts)
    assert text == whole.generate(max_tokens=sum(cuts))
    assert parts.position == whole.position
    np.testing.assert_array_equal(parts.logits, whole.logits)


def test_looking_at_the_state_changes_nothing(model):
    one, other = model.session(seed=1, max_tokens=5), model.session(seed=1, max_tokens=5)
    for session in (one, other):
        session.feed("abc")
        session.generate()
    assert one.logits is not None
    for session in (one, other):
        session.feed("def")
    assert one.generate() == other.generate()
    np.testing.assert_array_equal(one.logits, other.logits)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 50), start=st.integers(0, 30), size=st.integers(1, 6))
def test_a_stop_string_is_neither_returned_nor_read(model, seed, start, size):
    free = model.generate("Once", seed=seed, max_tokens=40, **PRINTABLE)
    stop = free[start : start + size]
    session = model.session(seed=seed, max_tokens=40, stop=["\n\n", stop], **PRINTABLE)
    session.feed("Once")
    pieces = list(session.stream())
    assert "".join(pieces) == free[: free.index(stop)]
    assert session.finish_reason == "stop"
    assert_same_state(session, list(b"Once" + "".join(pieces).encode()))


class RecordingBackend:
    """Another backend that remembers which tokens each state has read."""

    def __init__(self, inner: Backend):
        self.inner = inner
        self.read: dict[int, tuple[Any, list[int]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def forward(self, tokens: np.ndarray, state: State[Any], *, last_only: bool = False):
        logits, after = self.inner.forward(tokens, state, last_only=last_only)
        # The state is kept, so that no other object gets its id.
        self.read[id(after.wkv)] = (after, self.what(state) + tokens[0].tolist())
        return logits, after

    def what(self, state: State[Any]) -> list[int]:
        return self.read.get(id(state.wkv), (None, []))[1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_a_stop_string_may_begin_and_end_inside_a_token(world_model, seed, data):
    """The World tokenizer's tokens are words and pieces of characters."""
    options = {"seed": seed, "max_tokens": 16, "top_p": 1.0}
    free = world_model.generate("Once", **options)
    start = data.draw(st.integers(0, len(free) - 1))
    stop = free[start : start + data.draw(st.integers(1, 8))]
    backend = RecordingBackend(world_model.backend)
    session = LanguageModel(backend, world_model.tokenizer).session(stop=[stop], **options)
    session.feed("Once")
    text = session.generate()
    assert text == free[: free.index(stop)]
    assert session.finish_reason == "stop"
    read = backend.what(session.state)
    assert session.position == len(read)
    assert world_model.tokenizer.decode(read) == f"Once{text}"


def test_a_stop_string_inside_a_token_leaves_the_text_before_it_read(world_model):
    tokenizer = world_model.tokenizer
    text = " something"
    (token,) = tokenizer.encode(text)
    session = world_model.session(max_tokens=5, stop=["thing"])
    session.feed("It is")
    # Bans leave one token to choose.
    everything_else = tuple(other for other in range(65536) if other != token)
    assert session.generate(banned_tokens=everything_else) == " some"
    assert_same_state(session, [*tokenizer.encode("It is"), *tokenizer.encode(" some")])


def test_a_held_back_beginning_comes_out_when_it_was_no_stop(scripted):
    model = scripted({">": "abcabd end"})
    session = model.session(stop=["abd"])
    session.feed(">")
    assert list(session.stream()) == ["abc"]
    assert session.finish_reason == "stop"
    assert model.backend.what(session.state) == b">abc"
    session.feed(">")
    assert "".join(session.stream(stop=["abdx", "e!"])) == "abcabd end"
    assert session.finish_reason == "end_of_text"
    assert model.backend.what(session.state) == b">abc>abcabd end"


def test_what_is_held_back_comes_out_when_the_tokens_are_used_up(scripted):
    model = scripted({">": "abcd"})
    session = model.session(stop=["bcx"], max_tokens=3)
    session.feed(">")
    assert list(session.stream()) == ["a", "bc"]
    assert session.finish_reason == "max_tokens"
    assert model.backend.what(session.state) == b">abc"


def test_an_earlier_end_wins_over_an_earlier_beginning(scripted):
    model = scripted({">": "xabcd"})
    assert model.generate(">", stop=["abcd", "bc"]) == "xa"
    assert model.generate(">", stop=["bc", "abc"]) == "x"


def test_a_broken_off_stream_has_read_what_it_returned(scripted):
    model = scripted({">": "ab<<cd"})
    session = model.session(stop=["<<<"])
    session.feed(">")
    stream = session.stream()
    assert [next(stream), next(stream)] == ["a", "b"]
    stream.close()
    assert session.finish_reason is None
    assert model.backend.what(session.state) == b">ab"
    assert session.generate() == "<<cd"


def test_another_use_of_the_session_ends_an_open_stream(scripted):
    model = scripted({">": "a<<b", "!": "yes"})
    session = model.session(stop=["<<<"])
    session.feed(">")
    stream = session.stream()
    assert next(stream) == "a"
    session.feed("!")
    assert list(stream) == []
    assert session.generate() == "yes"
    assert model.backend.what(session.state) == b">a!yes"


def test_characters_are_never_cut(scripted):
    model = scripted({">": "né€𝄞!"})
    session = model.session()
    session.feed(">")
    assert list(session.stream()) == ["n", "é", "€", "𝄞", "!"]
    session.feed(">")
    text = ""
    while not text.endswith("!"):
        text += session.generate(max_tokens=1)
    assert text == "né€𝄞!"


def test_a_stop_string_of_characters_of_several_tokens(scripted):
    model = scripted({">": "aé€b"})
    session = model.session(stop=["€"])
    session.feed(">")
    assert session.generate() == "aé"
    assert model.backend.what(session.state) == ">aé".encode()


def test_a_character_that_the_end_of_text_cuts_is_replaced(scripted):
    model = scripted({">": b"a\xe2\x82"})
    session = model.session()
    session.feed(">")
    assert list(session.stream()) == ["a", "\ufffd"]
    session.feed(">")
    assert session.generate() == "a\ufffd"


def test_undo_takes_back_turns_one_by_one(model):
    session = model.session(seed=1, max_tokens=6, presence_penalty=0.5)
    read = []
    for message in ("one", "two", "three"):
        read.append((session.position, session.logits))
        session.feed(message)
        session.generate()
    for position, logits in reversed(read):
        session.undo()
        assert session.position == position
        if logits is None:
            assert session.logits is None
        else:
            np.testing.assert_array_equal(session.logits, logits)
    with pytest.raises(StateError, match="no turn to take back"):
        session.undo()


def test_a_second_try_may_give_another_text(model):
    session = model.session(seed=1, max_tokens=20)
    session.feed("one")
    first = session.generate()
    session.undo()
    session.feed("one")
    assert session.generate() != first
    session.undo()
    session.feed("one")
    assert session.generate(seed=1) == first


def test_undo_gives_back_the_penalties(model):
    session = model.session(seed=1, max_tokens=20, presence_penalty=1.0, temperature=0)
    session.feed("one")
    first = session.generate()
    session.undo()
    session.feed("one")
    assert session.generate() == first


def test_the_number_of_turns_kept_is_bounded(model):
    session = model.session()
    for _ in range(MAX_UNDO + 3):
        session.feed("x")
    for _ in range(MAX_UNDO):
        session.undo()
    assert session.position == 3
    with pytest.raises(StateError, match=str(MAX_UNDO)):
        session.undo()


def test_a_fork_goes_on_by_itself(model):
    session = model.session(seed=2, max_tokens=10)
    session.feed("one")
    session.generate()
    fork, other = session.fork(), session.fork(seed=9)
    texts = [each.generate() for each in (fork, session, other)]
    assert texts[0] == texts[1] != texts[2]
    fork.feed("more")
    fork.undo()
    fork.undo()
    assert fork.position == 0
    assert session.position > 3


def test_reset_forgets_all(model):
    session = model.session(seed=2, max_tokens=10, presence_penalty=1.0)
    session.feed("one")
    session.generate()
    session.reset()
    assert session.position == 0
    assert session.logits is None
    session.feed("one")
    assert session.generate(seed=2) == model.generate("one", seed=2, max_tokens=10, presence_penalty=1.0)
    session.undo()
    with pytest.raises(StateError, match="no turn"):
        session.undo()


def test_a_failed_feed_leaves_the_session_as_it_was(model):
    session = model.session()
    session.feed("one")
    before = session.logits
    with pytest.raises(ConfigError):
        session.feed([1, 999])
    np.testing.assert_array_equal(session.logits, before)
    session.undo()
    assert session.position == 0


def test_an_empty_feed_is_a_turn_without_tokens(model):
    session = model.session()
    session.feed("one")
    session.feed("")
    assert session.position == 3
    session.undo()
    assert session.position == 3


def test_an_empty_prompt_without_end_of_text_begins_with_a_newline(model_file):
    path = model_file()
    with_newline = rookery.load(path, tokenizer=CharTokenizer("\nabc"))
    assert with_newline.generate("", seed=1, max_tokens=9) == with_newline.generate(
        "\n", seed=1, max_tokens=9
    )
    without = rookery.load(path, tokenizer=CharTokenizer("abc"))
    with pytest.raises(ConfigError, match="the prompt is empty"):
        without.generate("")


def test_parameters_may_change_between_two_calls(model):
    session = model.session(seed=1, max_tokens=8)
    session.feed("one")
    session.sampling = SamplingParams(temperature=0, max_tokens=3)
    session.generate()
    assert session.generated == 3
    assert session.generate(max_tokens=2) is not None
    assert session.generated == 2
    assert session.sampling.max_tokens == 3


def test_the_state_has_one_size_however_long_the_text(model):
    session = model.session(seed=1, max_tokens=None, banned_tokens=[0])
    session.feed("one")
    stream = session.stream()
    sizes = set()
    for _ in range(300):
        next(stream)
        sizes.add(sum(part.size for part in session._state))
    assert len(sizes) == 1
