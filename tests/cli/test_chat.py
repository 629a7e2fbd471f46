from __future__ import annotations

import io
import os
import re
import select
import sys
import time

import pytest

import rookery
from rookery.cli import main
from rookery.cli.chat_commands import COMMANDS
from rookery.cli.line_reader import history_file
from rookery.generate import Chat

OPTIONS = ["--seed", "1", "--max-tokens", "12"]


@pytest.fixture
def chat(byte_model, monkeypatch, capsys):
    """Runs a conversation of lines in a pipe; returns what came on standard output and standard error."""

    def run(*lines: str, options: list[str] = OPTIONS) -> tuple[str, str]:
        text = "".join(f"{line}\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert main(["chat", str(byte_model), *options]) == 0
        return capsys.readouterr()

    return run


@pytest.fixture
def python_chat(byte_model) -> Chat:
    return Chat(rookery.load(byte_model).session(seed=1, max_tokens=12))


def test_each_line_is_a_turn(chat, python_chat):
    expected = ["".join(python_chat.answer(message)) for message in ("hello", "and you?")]
    out, error = chat("hello", "", "and you?")
    assert out == "".join(f"{answer}\n" for answer in expected)
    assert error == ""


def test_instructions_and_names(chat, byte_model):
    session = rookery.load(byte_model).session(seed=1, max_tokens=12)
    session.feed("System: Be brief.\n\nMe: hello\n\nYou:")
    expected = session.generate(stop=["\n\nMe:", "\n\nYou:"]).lstrip()
    out, _ = chat("hello", options=[*OPTIONS, "--system", "Be brief.", "--user", "Me", "--assistant", "You"])
    assert out == f"{expected}\n"


def test_help_lists_every_command(chat):
    _, error = chat("/help")
    for name in COMMANDS:
        assert f"/{name} " in error


def test_undo_and_reset(chat, python_chat):
    first = "".join(python_chat.answer("hello"))
    out, error = chat("hello", "/undo", "/seed 1", "hello", "/undo", "/undo", "/reset", "/seed 1", "hello")
    assert out == f"{first}\n" * 3
    assert error.count("the last turn is taken back; 0 tokens are left") == 2
    assert error.count("error: there is no turn to take back") == 1
    assert "a new conversation" in error


def test_fork_and_switch(chat):
    out, error = chat(
        "hello",
        "/fork",
        "/fork side",
        "one",
        "/switch main",
        "/seed 3",
        "two",
        "/switch 2",
        "/seed 3",
        "two",
        "/switch",
    )
    answers = out.splitlines()
    assert answers[-1] == answers[-2]
    assert "goes on as '2'; /switch main goes back" in error
    assert error.endswith("in '2' of 2, main, side\n")


def test_names_of_conversations(chat):
    _, error = chat("/fork main", "/switch elsewhere", "/switch main")
    assert "error: there is a conversation 'main' already" in error
    assert "error: there is no conversation 'elsewhere'; there are main" in error
    assert "in 'main' of main" in error


def test_save_and_load(chat, tmp_path):
    path = tmp_path / "with a space.state"
    out, error = chat("hello", f"/save {path}", "again", "/reset", f"/load {path}", "again")
    answers = out.splitlines()
    assert answers[-1] == answers[-2]
    assert f"saved to {path}" in error
    again, _ = chat("again", options=["--state", str(path)])
    assert again.splitlines() == answers[-1:]


def test_sampling_options_may_be_seen_and_set(chat, python_chat):
    out, error = chat(
        "/temp", "/temp 0", "/temp", "/max-tokens 5", "/max-tokens 0", "/max-tokens 12", "hello"
    )
    assert re.findall(r"temperature: (\S+)", error) == ["1.0", "0.0", "0.0"]
    assert re.findall(r"max tokens: (\S+)", error) == ["5", "none", "12"]
    assert out == "".join(python_chat.answer("hello", temperature=0)) + "\n"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/fly", "there is no command /fly; /help lists them"),
        ("/undo 3", "/undo takes nothing after it"),
        ("/save", "/save needs FILE after it"),
        ("/temp hot", "temperature must be a number, not 'hot'"),
        ("/temp -1", "temperature must be a number, 0 or more"),
        ("/top-p 3", "top_p must be"),
        ("/seed -1", "seed must be"),
        ("/load /nowhere", "/nowhere: not a state file"),
    ],
)
def test_a_command_that_cannot_be_done_ends_nothing(chat, python_chat, line, problem):
    out, error = chat(line, "hello")
    assert error.startswith(f"error: {problem}")
    assert out == "".join(python_chat.answer("hello")) + "\n"


def test_quit_leaves(chat):
    out, error = chat("/quit", "hello")
    assert (out, error) == ("", "")


def test_a_line_that_is_no_text(byte_model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff\n"), encoding="utf-8"))
    assert main(["chat", str(byte_model)]) == 2
    assert capsys.readouterr().err.startswith("rookery: error: standard input is not UTF-8 text")


def test_a_free_name_for_a_fork(chat):
    _, error = chat("/fork 2", "/fork", "/fork")
    assert [line.split(";")[0] for line in error.splitlines()] == [f"goes on as '{n}'" for n in (2, 3, 4)]


def test_speed(chat):
    _, error = chat("hello", options=[*OPTIONS, "--ban-token", "0", "--verbose"])
    assert re.match(r"read 23 tokens in .* wrote 12 tokens in .* ended by max_tokens\n", error)


def test_the_history_is_where_the_user_keeps_state(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_file() == tmp_path / "rookery" / "chat_history"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert history_file() == tmp_path / "home" / ".local" / "state" / "rookery" / "chat_history"


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str]):
        import pty

        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [sys.executable, "-m", "rookery", *arguments], environment)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def wait_for(self, pattern: str, timeout: float = 60) -> None:
        """Read until the pattern comes, and forget what came up to there."""
        end = time.monotonic() + timeout
        while (match := re.search(pattern, self.seen)) is None:
            ready, _, _ = select.select([self.descriptor], [], [], max(end - time.monotonic(), 0))
            assert ready, f"{pattern!r} did not come; what came was {self.seen!r}"
            try:
                data = os.read(self.descriptor, 65536)
            except OSError:  # how Linux says that the other side is closed
                data = b""
            assert data, f"{pattern!r} did not come before the end; what came was {self.seen!r}"
            # Where is the cursor? Top left.
            if b"\033[6n" in data:
                self.type("\033[1;1R")
            self.seen += data.decode(errors="replace")
        self.seen = self.seen[match.end() :]

    def leave(self) -> int:
        while True:
            try:
                if not os.read(self.descriptor, 65536):
                    break
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(status)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("writable", [True, False])
def test_on_a_terminal(byte_model, tmp_path, writable):
    state = tmp_path / "state"
    if not writable:
        state.write_text("a file, where a folder would have to be")
    environment = {**os.environ, "XDG_STATE_HOME": str(state), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    options = ["--seed", "1", "--max-tokens", "0", "--ban-token", "0", "--verbose", "--threads", "1"]
    terminal = Terminal(["chat", str(byte_model), *options], environment)
    terminal.wait_for("rookery chat")
    terminal.wait_for(r"0 tokens  ·  temp 1")
    terminal.type("hello\r")
    terminal.wait_for("[␀-␡]")
    terminal.type("\x03")
    terminal.wait_for(r"wrote \d+ tokens .* ended by interruption")
    terminal.type("/undo\r")
    terminal.wait_for("the last turn is taken back; 0 tokens are left")
    terminal.wait_for(r"0 tokens  ·  temp 1")
    terminal.type("half a line\x03")
    terminal.wait_for(r"0 tokens  ·  temp 1")
    terminal.type("/max-tokens 3\r")
    terminal.wait_for("max tokens: 3")
    terminal.type("again\r")
    terminal.wait_for("ended by max_tokens")
    terminal.wait_for(r"tokens  ·  temp 1")
    terminal.type("\x04")
    assert terminal.leave() == 0
    if writable:
        lines = [line[1:] for line in history_lines(state) if line.startswith("+")]
        assert lines == ["hello", "/undo", "/max-tokens 3", "again"]


def history_lines(state) -> list[str]:
    return (state / "rookery" / "chat_history").read_text().splitlines()
