from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from argparse import ArgumentParser, ArgumentTypeError
from dataclasses import fields
from pathlib import Path

import pytest

from rookery import cli
from rookery.cli import train as verb
from rookery.train import TrainConfig

SMALL = ["--layers", "1", "--width", "16", "--context", "16", "--batch", "2", "--valid-every", "0"]


@pytest.fixture
def text_file(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a text.txt"
    path.write_text("All work and no play makes Jack a dull boy.\n" * 50)
    return path


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1500", 1500),
        ("1536k", 1_536_000),
        ("1.5M", 1_500_000),
        ("2G", 2 * 10**9),
        ("2g", 2 * 10**9),
        ("0", 0),
    ],
)
def test_numbers_of_tokens(text, number):
    assert verb.count(text) == number


@pytest.mark.parametrize("text", ["", "k", "1.5x", "-3", "-1k", "nan", "inf", "1e999M"])
def test_what_is_no_number_of_tokens(text):
    with pytest.raises(ArgumentTypeError):
        verb.count(text)


def test_every_field_of_the_configuration_is_an_option():
    parser = ArgumentParser()
    verb.add_arguments(parser)
    options = {action.dest for action in parser._actions} - {"help", "resume"}
    assert options == {field.name for field in fields(TrainConfig)}


def test_help_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; from rookery import cli; cli.main(['train', '--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--learning-rate X" in done.stdout


@pytest.mark.parametrize(
    "what", ["cli.main(['train', 'x.txt', '--tokens', '1'])", "from rookery.train import train"]
)
def test_without_torch_the_extra_is_named(what):
    code = f"import sys; sys.modules['torch'] = None\nfrom rookery import cli\nsys.exit({what})"
    if what.startswith("from"):
        code = f"import sys; sys.modules['torch'] = None\n{what}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Training needs torch, which is not installed: pip install 'rookery[train]'" in done.stderr


def test_it_trains_and_says_how_to_use_the_model(text_file, capsys):
    assert cli.main(["train", str(text_file), "--tokens", "1k", *SMALL]) == 0
    output = capsys.readouterr().out
    [run] = Path("runs").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-a text", run.name)
    assert "held-out loss" in output
    assert f"rookery generate '{run}'" in output
    assert (run / "model.safetensors").is_file()
    # The next run of the day has a name of its own.
    assert cli.main(["train", str(text_file), "--tokens", "1k", *SMALL]) == 0
    assert len(list(Path("runs").iterdir())) == 2


def test_options_reach_the_configuration(text_file):
    from rookery.train.run_folder import RunFolder

    options = (
        "--tokens 100 --out run --rank decay=8 --rank gate=12 --suffix .py --suffix txt --exclude x "
        "--no-l2wrap --learning-rate 1e-3 --tokenizer chars --valid-documents --bf16"
    )
    assert cli.main(["train", str(text_file), *options.split(), *SMALL]) == 0
    config = RunFolder(Path("run")).read_config()
    assert config.ranks == {"decay_rank": 8, "gate_rank": 12}
    assert (config.suffix, config.exclude, config.l2wrap, config.bf16) == (
        (".py", "txt"),
        ("x",),
        False,
        True,
    )
    assert (config.tokens, config.learning_rate, config.tokenizer) == (100, 1e-3, "chars")
    assert config.beta2 == TrainConfig(data=("x",), tokens=1).beta2


def test_ctrl_c_saves_and_says_how_to_go_on(text_file):
    code = "import sys; from rookery.cli import main; sys.exit(main())"
    arguments = ["train", text_file.name, "--tokens", "1M", "--out", "my run", *SMALL]
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 1 "):
                process.send_signal(signal.SIGINT)
                break
        output = process.stdout.read()
    assert process.returncode == 130
    assert "Stopped and saved after step " in output
    assert output.endswith("\n  rookery train --resume 'my run'\n")
    assert Path("my run/model.safetensors").is_file()


def test_resume_takes_no_other_options(text_file, capsys):
    assert cli.main(["train", "--resume", "run", "--tokens", "5", "--bf16"]) == 2
    assert "leave out --tokens, --bf16" in capsys.readouterr().err
    assert cli.main(["train", str(text_file), "--resume", "run"]) == 2
    assert "leave out DATA" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "run"]) == 2
    assert "run: there is no run in this folder to resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there is no data to train on"),
        (["a text.txt"], "give one budget"),
        (["no.txt", "--tokens", "5"], "no.txt: there is no such file"),
        (["a text.txt", "--tokens", "5", "--context", "9999"], "too few for a context of 9999"),
        (["a text.txt", "--tokens", "5", "--version", "9"], "version '9' is unknown"),
        (["a text.txt", "--tokens", "5", "--tokenizer", "nothing.json"], "nothing.json: no such tokenizer"),
    ],
)
def test_mistakes_are_one_line(text_file, capsys, arguments, says):
    assert cli.main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
