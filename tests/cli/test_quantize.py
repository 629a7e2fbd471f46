"""`rookery quantize`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rookery.checkpoints import Quantized, dense, load
from rookery.cli import main, quantize
from rookery.native.quantize import TYPES


@pytest.mark.parametrize("kind", ["q8", "q4"])
def test_a_small_file_of_the_same_model(byte_model: Path, tmp_path: Path, capsys, kind: str) -> None:
    out = tmp_path / "small.gguf"
    assert main(["quantize", str(byte_model), "--type", kind, "-o", str(out), "--threads", "2"]) == 0
    text = capsys.readouterr().out
    assert f"{out}: RWKV-7, " in text
    assert TYPES[kind] in text
    assert "float32" in text
    assert " %" in text
    whole, made = load(byte_model), load(out)
    assert made.config == whole.config
    assert made.tokenizer == whole.tokenizer
    head = made.tensors["head.weight"]
    assert isinstance(head, Quantized)
    assert head.kind == TYPES[kind]
    for name, weight in whole.tensors.items():
        off = np.linalg.norm(dense(made.tensors[name]) - weight)
        assert off <= (0.12 if kind == "q4" else 0.01) * np.linalg.norm(weight), name
    assert out.stat().st_size < (0.6 if kind == "q8" else 0.5) * byte_model.stat().st_size


def test_its_text_can_be_read_on(byte_model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "small.gguf"
    main(["quantize", str(byte_model), "--type", "q8", "-o", str(out)])
    capsys.readouterr()
    assert main(["generate", str(out), "ab", "--max-tokens", "4", "--seed", "1"]) == 0
    assert main(["inspect", str(out)]) == 0
    assert "q8_0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--type", "q8", "-o", "out.safetensors"], "another suffix than .gguf"),
        (["--type", "q8", "-o", "out.gguf", "--threads", "0"], "threads must be 1 to"),
        (["--type", "q8", "-o", "absent/out.gguf"], "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_said(
    byte_model: Path, tmp_path: Path, monkeypatch, capsys, arguments: list[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["quantize", str(byte_model), *arguments]) == 2
    assert problem in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_old_file_stays_when_the_new_one_cannot_be_made(
    byte_model: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "small.gguf"
    out.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rookery.checkpoints.gguf_file.write_container", fail)
    assert main(["quantize", str(byte_model), "--type", "q8", "-o", str(out)]) == 2
    assert out.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["small.gguf"]


def test_the_types_are_those_of_the_engine() -> None:
    assert tuple(TYPES) == quantize._TYPES
