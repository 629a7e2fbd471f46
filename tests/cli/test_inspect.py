"""`rookery inspect`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from rookery.checkpoints import Checkpoint, expected_shapes, save
from rookery.cli import inspect
from rookery.config import sized
from rookery.errors import CheckpointError
from rookery.state import state_bytes


@pytest.fixture
def model(tmp_path: Path) -> Checkpoint:
    config = sized("7", vocab_size=71, width=32, num_layers=2, head_size=8)
    tensors = {name: np.ones(shape, np.float16) for name, shape in expected_shapes(config).items()}
    tensors["ln_out.bias"] = np.ones(32, np.float32)
    checkpoint = Checkpoint(config=config, tensors=tensors, tokenizer={"kind": "bytes"})
    save(checkpoint, tmp_path / "m.safetensors")
    return checkpoint


def _run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    return inspect.run(parser.parse_args(arguments))


def test_json_says_everything(tmp_path: Path, model: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(str(tmp_path / "m.safetensors"), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    total = sum(tensor.size for tensor in model.tensors.values())
    expected = {
        "file": str(tmp_path / "m.safetensors"),
        "version": "7",
        "vocab_size": 71,
        "width": 32,
        "num_layers": 2,
        "num_heads": 4,
        "head_size": 8,
        "decay_rank": 32,
        "parameters": total,
        "parameters_by_dtype": {"float16": total - 32, "float32": 32},
        "weight_bytes": 2 * total + 64,
        "state_bytes": state_bytes(model.config),
        "tokenizer": "bytes",
    }
    assert {name: said[name] for name in expected} == expected


def test_a_pipe_gets_plain_lines(
    tmp_path: Path, model: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(str(tmp_path / "m.safetensors")) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["version"] == "RWKV-7"
    assert lines["heads"] == "4 of size 8"
    assert lines["tokenizer"] == "bytes"
    assert lines["dtype"].endswith("float32 (32)")
    assert lines["state"].startswith(f"2.5 KiB ({state_bytes(model.config):,} bytes)")


def test_a_terminal_gets_a_table(
    tmp_path: Path,
    model: Checkpoint,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert _run(str(tmp_path / "m.safetensors")) == 0
    shown = capsys.readouterr().out
    assert "m.safetensors" in shown
    assert "╭" in shown
    assert "RWKV-7" in shown


def test_check_reads_the_weights(
    tmp_path: Path, model: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    model.tensors["ln_out.bias"][3] = np.nan
    save(model, tmp_path / "m.safetensors")
    assert _run(str(tmp_path / "m.safetensors")) == 0
    with pytest.raises(CheckpointError, match="not finite"):
        _run(str(tmp_path / "m.safetensors"), "--check")
