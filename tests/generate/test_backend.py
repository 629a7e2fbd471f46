from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import rookery
from rookery.errors import ConfigError, MissingExtraError
from rookery.generate import BACKENDS, DTYPES, choose
from rookery.generate.torch_backend import PREFILL_CHUNK, TorchBackend

VERSIONS = ["4", "5.0", "5.1", "5.2", "6", "7"]


def test_the_table_names_modules_that_load():
    for name, row in BACKENDS.items():
        assert choose(name) == name
        assert choose(device=row.devices[0]) in BACKENDS


def test_a_device_that_nothing_runs_on():
    with pytest.raises(ConfigError, match=r"'abacus'.*cpu, cuda"):
        choose(device="abacus")


def test_a_backend_that_is_not_there():
    with pytest.raises(ConfigError, match=r"no backend 'tpu'; there are torch"):
        choose("tpu")


def test_without_torch_the_extra_is_named(monkeypatch, model_file):
    path = model_file()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rookery\[train\]'"):
        rookery.load(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is available")
def test_a_device_that_torch_cannot_use(model_file):
    with pytest.raises(ConfigError, match=r"cannot use the device 'cuda'"):
        rookery.load(model_file(), device="cuda")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dtype": "int3"}, "no number type 'int3'; there are float32"),
        ({"threads": 0}, "threads must be 1 or more"),
    ],
)
def test_options_out_of_range(model_file, options, problem):
    with pytest.raises(ConfigError, match=problem):
        rookery.load(model_file(), **options)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_long_prompt_in_chunks_is_the_whole(model_file, version):
    backend = rookery.load(model_file(version)).backend
    tokens = np.random.default_rng(0).integers(0, 256, (2, PREFILL_CHUNK + 37))
    logits, state = backend.forward(tokens, backend.initial_state(2))
    with torch.inference_mode():
        whole, whole_state = backend.model(torch.tensor(tokens))
    assert logits.dtype == np.float32
    assert logits.shape == (2, PREFILL_CHUNK + 37, 256)
    np.testing.assert_allclose(logits, whole.numpy(), rtol=0, atol=1e-4 * np.abs(logits).max())
    for part, expected in zip(backend.to_numpy(state), whole_state, strict=True):
        np.testing.assert_allclose(part, expected.numpy(), rtol=1e-4, atol=1e-4)
    last, _ = backend.forward(tokens, backend.initial_state(2), last_only=True)
    np.testing.assert_allclose(last, logits[:, -1:], rtol=0, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_runs_and_its_state_goes_to_numpy_and_back_exactly(model_file, dtype):
    backend = rookery.load(model_file(), dtype=dtype).backend
    assert isinstance(backend, TorchBackend)
    assert backend.dtype == getattr(torch, DTYPES[dtype])
    logits, state = backend.forward(np.array([[1, 2, 3]]), backend.initial_state())
    assert logits.dtype == np.float32
    assert state.wkv.dtype == torch.float32
    arrays = backend.to_numpy(state)
    assert {part.dtype for part in arrays} == {np.dtype(np.float32)}
    for part, again in zip(state, backend.from_numpy(arrays), strict=True):
        assert part.dtype == again.dtype
        assert torch.equal(part, again)


def test_a_copied_state_shares_no_memory(model_file):
    backend = rookery.load(model_file()).backend
    _, state = backend.forward(np.array([[1, 2, 3]]), backend.initial_state())
    arrays = backend.to_numpy(state)
    before = state.wkv.clone()
    arrays.wkv[:] = 7
    assert torch.equal(state.wkv, before)


def test_the_default_dtype_on_a_cpu_is_float32(model_file, tmp_path):
    from rookery import checkpoints

    halved = checkpoints.cast(checkpoints.load(model_file()), "bfloat16")
    checkpoints.save(halved, tmp_path / "half.safetensors")
    assert rookery.load(tmp_path / "half.safetensors", device="cpu").backend.dtype == torch.float32


def test_a_model_that_is_tried_out_can_go_on_training(model_file):
    from rookery import checkpoints
    from rookery.models import from_checkpoint

    module = from_checkpoint(checkpoints.load(model_file())).train()
    backend = TorchBackend(module)
    backend.forward(np.array([[1, 2]]), backend.initial_state())
    assert module.training
    logits, _ = module(torch.tensor([[1, 2]]))
    logits.sum().backward()
    assert module.head.weight.grad is not None
