from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest

import rookery
from rookery.cli import main
from rookery.generate import SamplingParams


@pytest.fixture
def stdin(monkeypatch):
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    return give


def test_it_writes_what_python_writes(byte_model, capsys):
    assert main(["generate", str(byte_model), "It was", "--seed", "1", "--max-tokens", "30"]) == 0
    text = capsys.readouterr().out
    assert text == rookery.load(byte_model).generate("It was", seed=1, max_tokens=30)


@pytest.mark.parametrize("data", [b"It was", b"It was\n", b"It was\r\n"])
def test_a_prompt_from_a_pipe_loses_one_newline(byte_model, capsys, stdin, data):
    stdin(data)
    assert main(["generate", str(byte_model), "--seed", "1", "--max-tokens", "9"]) == 0
    assert capsys.readouterr().out == rookery.load(byte_model).generate("It was", seed=1, max_tokens=9)


def test_a_prompt_from_a_pipe_loses_no_more_than_one_newline(byte_model, capsys, stdin):
    stdin(b"It was\n\n")
    assert main(["generate", str(byte_model), "-", "--seed", "1", "--max-tokens", "9"]) == 0
    assert capsys.readouterr().out == rookery.load(byte_model).generate("It was\n", seed=1, max_tokens=9)


def test_a_prompt_that_is_no_text(byte_model, capsys, stdin):
    stdin(b"ab\xff")
    assert main(["generate", str(byte_model)]) == 2
    error = "rookery: error: the prompt on standard input is not UTF-8 text: invalid start byte at byte 2\n"
    assert capsys.readouterr().err == error


def test_every_sampling_option_arrives(byte_model, monkeypatch, capsys):
    options = {
        "temperature": 0.7,
        "top_k": 50,
        "top_p": 0.9,
        "min_p": 0.01,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "penalty_decay": 0.99,
        "repetition_penalty": 1.1,
        "seed": 5,
        "max_tokens": 12,
    }
    arguments = [
        text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    arguments += [
        "--temperature-last",
        "--ban-token",
        "65",
        "--ban-token",
        "66",
        "--stop",
        r"\n\n",
        "--stop",
        "x",
    ]
    expected = SamplingParams(temperature_last=True, banned_tokens=(65, 66), stop=("\n\n", "x"), **options)
    assert set(vars(expected)) == {*options, "temperature_last", "banned_tokens", "stop"}
    seen = []
    session_class = rookery.Session
    stream = session_class.stream
    monkeypatch.setattr(
        session_class, "stream", lambda self, **given: seen.append(self.sampling) or stream(self, **given)
    )
    assert main(["generate", str(byte_model), "It was", *arguments]) == 0
    assert seen == [expected]
    assert capsys.readouterr().out == rookery.load(byte_model).generate("It was", sampling=expected)


@pytest.mark.parametrize(
    ("text", "stop"),
    [("a b", "a b"), (r"\n\nUser:", "\n\nUser:"), (r"\t", "\t"), (r"\\n", r"\n"), ("\n", "\n")],
)
def test_a_stop_string_is_written_with_escapes(text, stop):
    from rookery.cli.model_options import unescape

    assert unescape(text) == stop


def test_a_state_goes_on_where_it_was_saved(byte_model, capsys, tmp_path):
    state = str(tmp_path / "a.state")
    whole = rookery.load(byte_model).generate("It was", seed=3, max_tokens=24, temperature=0.9)
    model, options = str(byte_model), ["--seed", "3", "--temperature", "0.9"]
    assert main(["generate", model, "It was", *options, "--max-tokens", "10", "--save-state", state]) == 0
    assert main(["generate", model, "--state", state, "--max-tokens", "14"]) == 0
    assert capsys.readouterr().out == whole


def test_what_is_given_goes_before_what_was_saved(byte_model, capsys, tmp_path):
    state = str(tmp_path / "a.state")
    model = str(byte_model)
    assert main(["generate", model, "It was", "--max-tokens", "3", "--save-state", state]) == 0
    capsys.readouterr()
    for _ in range(2):
        assert main(["generate", model, " a", "--state", state, "--seed", "8", "--max-tokens", "20"]) == 0
    first = capsys.readouterr().out
    assert first[: len(first) // 2] == first[len(first) // 2 :]


def test_speed_goes_to_standard_error(byte_model, capsys):
    arguments = ["--seed", "1", "--max-tokens", "5", "--ban-token", "0", "--verbose"]
    assert main(["generate", str(byte_model), "It was", *arguments]) == 0
    line = capsys.readouterr().err
    assert line.startswith("read 6 tokens in ")
    assert "wrote 5 tokens in " in line
    assert line.endswith("ended by max_tokens\n")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--top-p", "2"], "top_p must be"),
        (["--ban-token", "999"], "token 999 is banned, but the model has only 256 tokens"),
        (["--tokenizer", "nowhere.json"], "nowhere.json: no such tokenizer"),
        (["--tokenizer", "world"], "the tokenizer has 65536 ids, but the model only 256"),
        (["--device", "abacus"], "nothing here runs on the device 'abacus'"),
        (["--dtype", "int3"], "there is no number type 'int3'"),
        (["--state", "nowhere.state"], "nowhere.state: not a state file"),
        (["--save-state", "/nowhere/a.state", "--max-tokens", "1"], "/nowhere/a.state: the state cannot be"),
    ],
)
def test_options_that_do_not_fit(byte_model, capsys, arguments, problem):
    assert main(["generate", str(byte_model), "It was", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rookery: error: {problem}")
    assert error.count("\n") == 1


def test_a_model_that_is_not_there(capsys):
    assert main(["generate", "nowhere.pth", "x"]) == 2
    assert capsys.readouterr().err.startswith("rookery: error: nowhere.pth: cannot be read")


def test_control_characters_do_not_reach_a_terminal(capsys, monkeypatch):
    from rookery.cli.terminal import write_text

    text = "a\033]52;c;x\a\r\n\tb\x9b31m\x7fé"
    write_text(text)
    assert capsys.readouterr().out == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    write_text(text)
    assert capsys.readouterr().out == "a␛]52;c;x␇␍\n\tb\ufffd31m␡é"


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_ends_it_and_saves_the_state(byte_model, tmp_path):
    state = tmp_path / "a.state"
    command = [
        sys.executable,
        "-m",
        "rookery",
        "generate",
        str(byte_model),
        "It was",
        "--save-state",
        str(state),
    ]
    process = subprocess.Popen(
        [*command, "--max-tokens", "0", "--ban-token", "0", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.read(50)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert error == b""
    assert process.returncode == 130
    session = rookery.load(byte_model).session()
    session.load(state)
    assert session.position > 6
