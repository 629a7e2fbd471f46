from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import rookery
from rookery import cli
from rookery.errors import ConfigError

ALL_VERBS = [verb for verbs in cli.VERBS.values() for verb in verbs]


def fake_verb(monkeypatch, work):
    """Let ``rookery inspect`` do ``work`` in place of its own."""
    monkeypatch.setattr(import_module("rookery.cli.inspect"), "run", lambda args: work())


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb(capsys, arguments):
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert text == cli.help_text()
    for verb in ALL_VERBS:
        assert f"\n  {verb} " in text
    assert "\033" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_help_of_a_verb(capsys):
    with pytest.raises(SystemExit):
        cli.main(["help", "inspect"])
    assert capsys.readouterr().out.startswith("usage: rookery inspect")


def test_the_examples_are_commands_that_can_be_given():
    assert cli.EXAMPLES
    for command, _ in cli.EXAMPLES:
        _, _, after = command.rpartition("rookery ")
        verb, *rest = shlex.split(after)
        cli.verb_parser(verb).parse_args(rest)


def test_help_in_colour_says_the_same():
    import re

    assert re.sub(r"\033\[\d+m", "", cli.help_text(color=True)) == cli.help_text()


def test_without_a_verb_there_is_help_and_a_failure(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().out == cli.help_text()


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"rookery {rookery.__version__}\n"


@pytest.mark.parametrize("verb", ALL_VERBS)
def test_every_verb_is_there_and_explains_itself(capsys, verb):
    assert find_spec(f"rookery.cli.{verb}") is not None
    with pytest.raises(SystemExit) as leaving:
        cli.main([verb, "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: rookery {verb}")
    assert import_module(f"rookery.cli.{verb}").HELP.split()[0] in text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["generat"], "there is no verb 'generat'; did you mean 'generate'?"),
        (["fly"], "there is no verb 'fly'; the verbs are demo, train"),
        (["--fly"], "there is no option '--fly'"),
    ],
)
def test_a_verb_that_is_not_there(capsys, arguments, problem):
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"rookery: error: {problem}")
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_an_option_is_not_abbreviated(capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["inspect", "x", "--jso"])
    assert leaving.value.code == 2
    assert "unrecognized arguments: --jso" in capsys.readouterr().err


def test_an_error_of_ours_is_one_line(capsys, monkeypatch):
    def fail():
        raise ConfigError("it does not fit")

    fake_verb(monkeypatch, fail)
    assert cli.main(["inspect", "x"]) == 2
    assert capsys.readouterr().err == "rookery: error: it does not fit\n"


def test_an_error_of_the_system_is_one_line(capsys, monkeypatch):
    fake_verb(monkeypatch, lambda: Path("/nothing/here").stat())
    assert cli.main(["inspect", "x"]) == 2
    assert capsys.readouterr().err == "rookery: error: /nothing/here: No such file or directory\n"


def test_any_other_error_is_a_bug_and_shows_itself(monkeypatch):
    fake_verb(monkeypatch, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["inspect", "x"])


def test_an_interruption_is_no_traceback(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    fake_verb(monkeypatch, interrupt)
    assert cli.main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == ""


def test_the_status_of_the_verb_is_that_of_the_command(monkeypatch):
    fake_verb(monkeypatch, lambda: 3)
    assert cli.main(["inspect", "x"]) == 3


def test_a_reader_that_goes_away_is_no_traceback():
    code = (
        "import rookery.cli, rookery.cli.inspect, sys\n"
        "rookery.cli.inspect.run = lambda args: [print('a line') for _ in range(10**5)] and 0\n"
        "sys.exit(rookery.cli.main(['inspect', 'x']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_a_terminal_of_an_old_encoding_shows_what_it_can():
    code = "from rookery.cli import main; main(['--version']); print('é')"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert result.stdout.decode("ascii").endswith("?\n")


def test_python_m_rookery_is_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "rookery", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"rookery {rookery.__version__}\n"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from rookery.cli import main; main(['--help']);"
        "heavy = {'numpy', 'torch', 'argparse', 'rich', 'prompt_toolkit'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
