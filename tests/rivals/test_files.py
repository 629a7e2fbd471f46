"""A model of any mixer in one file and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rookery.errors import CheckpointError
from rookery.rivals import MIXERS, load, load_tokenizer, save


def tokens() -> torch.Tensor:
    return torch.arange(6)[None]


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_comes_back(random_rival, tmp_path, name: str, dtype: torch.dtype):
    model = random_rival(name, dtype=dtype, width=32)
    path = tmp_path / "model.safetensors"
    save(model, path, tokenizer={"kind": "bytes"})
    loaded = load(path)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert load_tokenizer(path) == {"kind": "bytes"}
    for (key, parameter), got in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(parameter, got), key
        assert got.requires_grad
    assert torch.equal(loaded(tokens())[0], model(tokens())[0])
    assert torch.equal(load(tmp_path)(tokens())[0], model(tokens())[0])
    assert load(path, dtype=torch.float64).head.weight.dtype == torch.float64
    save(model, path)
    assert load_tokenizer(path) is None


@pytest.fixture
def lstm(random_rival, tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    save(random_rival("lstm", dtype=torch.float32), path)
    return path


def rewrite(path: Path, *, drop: str = "", config: str | None = None, **tensors: torch.Tensor) -> None:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        metadata = dict(file.metadata())
    kept = {name: tensor for name, tensor in load_file(path).items() if name != drop}
    if config is not None:
        metadata["rookery.rival"] = config
    save_file(kept | tensors, path, metadata)


def test_broken_files_are_refused(lstm: Path):
    whole = lstm.read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        lstm.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load(lstm)
        with pytest.raises(CheckpointError):
            load_tokenizer(lstm)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(lstm.with_name("absent.safetensors"))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("{", "configuration in its metadata is broken"),
        ("[1]", "it is a list"),
        ("{}", "missing"),
        ('{"mixer": "gru"}', "broken"),
        ("[" * 100_000, "broken"),
    ],
)
def test_broken_configurations_are_refused(lstm: Path, config: str, problem: str):
    rewrite(lstm, config=config)
    with pytest.raises(CheckpointError, match=problem):
        load(lstm)


def test_tensors_that_do_not_fit_are_refused(lstm: Path, random_rival):
    rewrite(lstm, drop="head.weight")
    with pytest.raises(CheckpointError, match=r"'head\.weight'.*is missing"):
        load(lstm)
    rewrite(lstm, **{"head.weight": torch.zeros(3, 3)})
    with pytest.raises(CheckpointError, match=r"'head\.weight'.*has shape \(3, 3\)"):
        load(lstm)
    save(random_rival("lstm", dtype=torch.float32), lstm)
    rewrite(lstm, **{"blocks.0.att.gru": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"'blocks\.0\.att\.gru'.*is surplus: lstm has no such"):
        load(lstm)
    config = json.dumps(random_rival("rnn").config.to_dict())
    save(random_rival("lstm", dtype=torch.float32), lstm)
    rewrite(lstm, config=config)
    with pytest.raises(CheckpointError):
        load(lstm)


def test_what_cannot_be_written_is_refused_and_the_old_file_stays(lstm: Path, random_rival, tmp_path):
    before = lstm.read_bytes()
    with pytest.raises(CheckpointError, match="float64"):
        save(random_rival("rnn"), lstm)
    with pytest.raises(CheckpointError, match="suffix"):
        save(random_rival("rnn", dtype=torch.float32), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(random_rival("rnn", dtype=torch.float32), tmp_path / "absent" / "model.safetensors")
    assert lstm.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [lstm.name]
