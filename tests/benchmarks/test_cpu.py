"""`python -m benchmarks.cpu` on a tiny model: every part runs, and counts what it says."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from benchmarks.cpu import __main__ as command
from benchmarks.cpu import llama, measure
from benchmarks.cpu.engines import Rookery, bytes_of_a_step, operations_of_a_prompt
from benchmarks.cpu.weights import FULL, TINY, files
from rookery import checkpoints
from rookery.checkpoints import cast
from rookery.models import convert

THREADS = 2


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory):
    return files(tmp_path_factory.mktemp("tiny"), TINY, lambda text: None)


@pytest.fixture
def setting(tiny_files):
    return measure.Setting(files=tiny_files, threads=THREADS, rounds=1, tiny=True, say=lambda text: None)


@pytest.fixture
def no_peers(monkeypatch):
    monkeypatch.setattr(llama, "installed", lambda: False)
    monkeypatch.setattr(measure, "rwkv_installed", lambda: False)


def test_the_model_is_the_one_that_is_promised():
    assert (FULL.num_layers, FULL.width, FULL.vocab_size, FULL.ffn_width) == (12, 768, 65536, 3072)
    assert (FULL.decay_rank, FULL.iclr_rank, FULL.value_rank, FULL.gate_rank) == (64, 64, 32, 128)


@pytest.mark.parametrize("part", [part for part in command.PARTS if part != "process"])
def test_every_part_runs_without_peers(setting, no_peers, part: str):
    figures = command.run([part], setting)
    assert part == "rwkv" or figures
    for figure in figures:
        assert np.isfinite(figure.value)
        assert figure.value > 0
        assert "llama" not in figure.figure


def test_a_process_is_measured(setting):
    by_name = {figure.figure: figure for figure in measure.process(setting)}
    memory = by_name["resident memory above the weight file, q8"]
    assert 10 < memory.value < 1000
    assert (memory.bound, memory.at_most) == (64, True)
    assert 0 < by_name["cold start, rookery --help"].value < 60
    assert 0 < by_name["cold start, first token, q8"].value < 60


@pytest.mark.skipif(not llama.installed(), reason=llama.INSTALL)
def test_llama_cpp_computes_the_same_model(setting):
    figures = measure.decode(setting)
    apart = [figure.value for figure in figures if figure.figure.startswith("logits")]
    assert len(apart) == 3
    assert max(apart) < 0.3
    assert {"decode, 1 stream, rookery q8 / llama.cpp Q8_0"} <= {figure.figure for figure in figures}
    assert any("its fastest" in figure.figure for figure in measure.prefill(setting))
    assert any(figure.figure.endswith("/ llama.cpp Q8_0") for figure in measure.streams(setting))


def test_the_rwkv_package_computes_the_same_model(setting):
    assert len(measure.against_rwkv_package(setting)) == 6


def test_bytes_of_a_step_leave_out_the_columns_of_zeros(tiny_files):
    """Against the inputs of the value matrices in the torch model."""
    path, tokens = tiny_files["bf16"], [5, 70, 900]
    model = convert.from_checkpoint(cast(checkpoints.load(path), "float32"))
    zeros = 0

    def count(module, inputs):
        nonlocal zeros
        zeros += int((inputs[0] == 0).sum())

    for block in model.blocks:
        block.ffn.value.register_forward_pre_hook(count)
    model(np_tokens(tokens))
    weights = sum(
        tensor.size * (4 if tensor.ndim != 2 or name.endswith("r_k") else 2)
        for name, tensor in checkpoints.load(path).tensors.items()
        if name != "emb.weight" and not name.startswith("blocks.0.att.v")
    )
    wanted = weights + 2 * TINY.width - 2 * TINY.width * zeros / len(tokens)
    assert bytes_of_a_step(path, tokens, threads=1) == pytest.approx(wanted, rel=0.02)
    assert bytes_of_a_step(tiny_files["q8"], tokens, threads=1) < 0.6 * wanted


def test_operations_of_a_prompt(tiny_files):
    """Two for each weight of a matrix and each token."""
    D, F, R, N, L = TINY.width, TINY.ffn_width, 32, TINY.vocab_size, TINY.num_layers
    layers = L * (4 * D * D + 2 * D * F + 4 * 2 * D * R) - 2 * D * R  # no value residual in layer 0
    assert operations_of_a_prompt(tiny_files["pth"], 7) == 2 * (7 * layers + N * D)


def np_tokens(tokens: list[int]):
    import torch

    return torch.tensor([tokens])


def test_streams_are_forgotten(tiny_files):
    engine = Rookery(tiny_files["q8"], threads=1, streams=2)
    engine.advance([(1, [3, 4])])
    first = engine.logits().copy()
    engine.advance([(1, [3, 4])])
    assert not np.array_equal(engine.logits(), first)
    engine.forget()
    assert engine.advance([(0, [9]), (1, [3, 4])]) > 0
    np.testing.assert_allclose(engine.logits(), first, rtol=1e-4, atol=1e-4)


def test_the_command(tiny_files, no_peers, monkeypatch, tmp_path, capsys):
    figures, page = tmp_path / "figures.json", tmp_path / "page.md"
    page.write_text("<!-- table -->\n<!-- table -->\n")
    arguments = ["--tiny", "--parts", "limits", "streams", "--rounds", "1", "--threads", "2"]
    arguments += ["--folder", str(tiny_files["q8"].parent), "--json", str(figures), "--markdown", str(page)]
    monkeypatch.setattr(sys, "argv", ["cpu", *arguments])
    monkeypatch.setattr(command, "rwkv_installed", lambda: False)
    command.main()
    printed = capsys.readouterr()
    assert "pip install llama-cpp-python==0.3.36" in printed.err
    assert "pip install rwkv==0.8.32" in printed.err
    names = {row["figure"] for row in json.loads(figures.read_text())["figures"]}
    assert {"decode, 2 streams, rookery q8", "int8 peak of 2 threads"} <= names
    assert "| int8 peak of 2 threads |" in page.read_text()
