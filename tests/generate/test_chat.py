from __future__ import annotations

import pytest

from rookery.errors import ConfigError
from rookery.generate import Chat, ChatTemplate


@pytest.mark.parametrize(
    ("message", "clean"),
    [
        ("  hello \n", "hello"),
        ("one\n\ntwo", "one\ntwo"),
        ("one\r\n\r\ntwo", "one\ntwo"),
        ("one\n \t\n\n  two", "one\n  two"),
        ("one\ntwo", "one\ntwo"),
    ],
)
def test_blank_lines_in_a_message_are_collapsed(message, clean):
    assert ChatTemplate().turn(message) == f"User: {clean}\n\nAssistant:"


def test_a_conversation_is_read_in_the_official_format(scripted):
    model = scripted(
        {
            "one\n\nAssistant:": " The first.\n\nUser: and",
            "two\n\nAssistant:": " The\n\nsecond.",
            "three\n\nAssistant:": " The third.\n\nAssistant: so",
        }
    )
    chat = Chat(model.session())
    assert "".join(chat.answer("one")) == "The first."
    assert chat.session.finish_reason == "stop"
    assert "".join(chat.answer(" two\n\n")) == "The\n\nsecond."
    assert chat.session.finish_reason == "end_of_text"
    assert "".join(chat.answer("three")) == "The third."
    assert model.backend.what(chat.session.state).decode() == (
        "User: one\n\nAssistant: The first.\n\n"
        "User: two\n\nAssistant: The\n\nsecond.\n\n"
        "User: three\n\nAssistant: The third."
    )


def test_undo_and_fork_and_instructions(scripted):
    model = scripted({"one\n\nAssistant:": " 1", "two\n\nAssistant:": " 2"})
    chat = Chat(model.session(), instructions="Count.\n\nGood.")
    assert "".join(chat.answer("one")) == "1"
    fork = chat.fork()
    assert "".join(fork.answer("two")) == "2"
    fork.session.undo()
    fork.session.undo()
    assert fork.session.position == 0
    assert "".join(fork.answer("two")) == "2"
    read = [model.backend.what(each.session.state).decode() for each in (chat, fork)]
    assert read[0] == "System: Count.\nGood.\n\nUser: one\n\nAssistant: 1"
    assert read[1] == "System: Count.\nGood.\n\nUser: two\n\nAssistant: 2"


def test_a_stop_string_of_the_user_joins_those_of_the_template(scripted):
    model = scripted({"one\n\nAssistant:": " a#b\n\nUser:"})
    chat = Chat(model.session(stop=["#"]))
    assert "".join(chat.answer("one")) == "a"
    chat.session.reset()
    assert "".join(chat.answer("one", stop=())) == "a#b"


def test_an_answer_that_is_broken_off(scripted):
    model = scripted({"one\n\nAssistant:": " first\n\nsecond", "two\n\nAssistant:": " 2"})
    chat = Chat(model.session())
    answer = chat.answer("one")
    said = "".join(next(answer) for _ in range(5))
    answer.close()
    assert said == "first"
    assert "".join(chat.answer("two")) == "2"
    read = model.backend.what(chat.session.state).decode()
    assert read == "User: one\n\nAssistant: first\n\nUser: two\n\nAssistant: 2"


def test_penalties_count_one_answer_alone(model):
    chat = Chat(model.session(seed=1, temperature=0, max_tokens=12, presence_penalty=50.0))
    list(chat.answer("one"))
    texts = []
    for forget in (True, False):
        session = chat.fork().session
        session.feed("\n\nUser: two\n\nAssistant:")
        if forget:
            session.forget_penalties()
        texts.append(session.generate(stop=chat.template.stops).lstrip())
    assert "".join(chat.answer("two")) == texts[0] != texts[1]


def test_names_may_be_others(scripted):
    template = ChatTemplate(user="Q", assistant="A")
    assert template.stops == ("\n\nQ:", "\n\nA:")
    chat = Chat(scripted({"Q: x\n\nA:": " y\n\nQ:"}).session(), template)
    assert "".join(chat.answer("x")) == "y"


def test_what_is_no_conversation(model):
    with pytest.raises(ConfigError, match="names"):
        ChatTemplate(user="")
    chat = Chat(model.session())
    with pytest.raises(ConfigError, match="empty"):
        chat.answer(" \n ")
    assert chat.session.position == 0
