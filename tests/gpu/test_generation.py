"""What is generated on a GPU is what the CPU generates: prompts, graphs, sampling, weights in blocks."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch

import rookery
from rookery import checkpoints
from rookery.checkpoints import Checkpoint
from rookery.cli import main
from rookery.generate import SamplingParams
from rookery.generate.batch import BatchDecoder
from rookery.generate.torch_backend import TorchBackend, load
from rookery.models import to_tensors
from rookery.ops.triton import interpreting

GREEDY = SamplingParams(temperature=0)
DRAWN = SamplingParams(temperature=1.2, top_p=0.9, top_k=20, seed=3)
PENALISED = SamplingParams(temperature=0.8, top_p=1, frequency_penalty=0.5, repetition_penalty=1.2, seed=4)


@pytest.fixture(autouse=True)
def _tall_tiles(monkeypatch):
    """An interpreter takes as long for few rows of a tile as for many."""
    if interpreting():
        monkeypatch.setattr("rookery.generate.batch.few.step.ROWS", 32)


@pytest.fixture(scope="module")
def model_file(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")

    def make(version: str) -> Any:
        path = folder / f"{version}.safetensors"
        if not path.exists():
            model = small_model(version, layers=1)
            tensors, tokenizer = to_tensors(model), {"kind": "bytes"}
            checkpoints.save(Checkpoint(config=model.config, tensors=tensors, tokenizer=tokenizer), path)
        return path

    return make


def played(model: Any, device: str) -> tuple[list[Any], np.ndarray]:
    """Streams that come, go, and come again: their tokens by step, and the last logits of one."""
    backend = TorchBackend(copy.deepcopy(model).to(device), prefill_chunk=3, graphs=device == "cuda")
    decoder = BatchDecoder(backend, max_streams=3, sizes=[1, 3])
    first = decoder.join([1, 2, 3, 4, 5], sampling=GREEDY)
    said: list[Any] = [decoder.step()]
    decoder.join([9], sampling=DRAWN)
    third = decoder.join([8, 8], sampling=PENALISED)
    said.append(decoder.steps(3))
    left = decoder.leave(first)
    said.append(decoder.step())
    again = decoder.join(left.unread, state=left.state, sampling=left.sampler)
    said.append(decoder.steps(2))
    assert again != first
    return said, decoder.logits(third)


@pytest.mark.parametrize("version", ["4", "6", "7", pytest.param("5.2", marks=pytest.mark.slow)])
def test_streams_say_what_they_say_on_the_cpu(small_model, version):
    model = small_model(version).requires_grad_(False)
    (said, logits), (expected, exact) = played(model, "cuda"), played(model, "cpu")
    assert said == expected
    assert np.linalg.norm(logits - exact) < 1e-5 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("version", "dtype"),
    [("7", "q8"), ("4", "bfloat16"), ("7", "float16"), pytest.param("6", "q4", marks=pytest.mark.slow)],
)
def test_weights_of_all_types_give_the_logits_of_the_cpu(model_file, version, dtype):
    checkpoint = checkpoints.load(model_file(version))
    tokens = np.array([[72, 97, 108]])
    cpu, backend = (
        load(checkpoint, device="cpu", dtype="float32"),
        load(checkpoint, device="cuda", dtype=dtype),
    )
    logits, _ = cpu.forward(tokens, cpu.initial_state())
    found, state = backend.forward(tokens, backend.initial_state())
    bound = {"q8": 0.05, "q4": 0.5, "bfloat16": 0.05, "float16": 0.01}[dtype]
    assert np.linalg.norm(found - logits) < bound * np.linalg.norm(logits)
    # The next tokens go through a graph.
    for token in (1, 2):
        found, state = backend.forward(np.array([[token]]), state)
    longer = np.concatenate([tokens, [[1, 2]]], axis=1)
    whole, _ = backend.forward(longer, backend.initial_state(), last_only=True)
    assert np.linalg.norm(found[0, 0] - whole[0, 0]) < bound * np.linalg.norm(whole)


def test_the_command_writes_what_it_writes_on_the_cpu(model_file, tmp_path, capsys):
    path, state = str(model_file("7")), str(tmp_path / "state")
    said = []
    for device in ("cpu", "cuda"):
        options = ["--device", device, "--dtype", "float32", "--seed", "1"]
        assert main(["generate", path, "It was", "--max-tokens", "6", "--save-state", state, *options]) == 0
        assert main(["generate", path, "--max-tokens", "4", "--state", state, *options]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_a_gpu_is_the_default_and_a_second_one_is_none(model_file, monkeypatch, capsys):
    path = model_file("7")
    monkeypatch.setattr("rookery.generate.backend._GPUS", ("/",))
    assert rookery.load(path).backend.device.type == "cuda"
    assert main(["generate", str(path), "It was", "--device", f"cuda:{torch.cuda.device_count()}"]) == 2
    assert "cannot use the device" in capsys.readouterr().err


def test_a_text_has_the_loss_that_it_has_on_the_cpu(model_file, tmp_path):
    (tmp_path / "text").write_text("It was a bright cold day.")
    found = {}
    for device in ("cpu", "cuda"):
        out, results = str(tmp_path / device), tmp_path / f"{device}.json"
        options = [
            "--device",
            device,
            "--dtype",
            "float32",
            "--window",
            "16",
            "--out",
            out,
            "--json",
            str(results),
        ]
        assert main(["eval", str(model_file("6")), "--text", str(tmp_path / "text"), *options]) == 0
        [found[device]] = json.loads(results.read_text())["results"]
    assert (found["cuda"]["tokens"], found["cuda"]["setting"]["backend"]) == (25, "TorchBackend")
    assert found["cuda"]["loss"] == pytest.approx(found["cpu"]["loss"], rel=1e-5)
