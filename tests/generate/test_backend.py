from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import rookery
from rookery import checkpoints
from rookery.errors import ConfigError, MissingExtraError
from rookery.generate import BACKENDS, DTYPES, choose
from rookery.generate import backend as backend_module
from rookery.generate.native_backend import NativeBackend
from rookery.generate.torch_backend import PREFILL_CHUNK, TorchBackend
from rookery.models import from_checkpoint

VERSIONS = ["4", "5.0", "5.1", "5.2", "6", "7"]


def test_the_table_names_modules_that_load():
    for name, row in BACKENDS.items():
        assert choose(name) == name
        assert choose(device=row.devices[0]) in BACKENDS


def test_a_cpu_has_the_native_engine(monkeypatch, model_file):
    assert choose(device="cpu") == "native"
    assert isinstance(rookery.load(model_file(), device="cpu").backend, NativeBackend)
    assert choose("torch", "cpu") == choose(device="cuda:1") == "torch"
    monkeypatch.setattr(backend_module, "_GPUS", ())
    assert choose() == "native"


def test_torch_is_asked_for_a_gpu_where_there_is_a_driver(monkeypatch, tmp_path):
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(backend_module, "_GPUS", (str(tmp_path / "nvidiactl"),))
    for available, name in [(True, "torch"), (False, "native")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert choose() == name
        assert choose(device="cpu") == "native"


def test_a_device_that_nothing_runs_on():
    with pytest.raises(ConfigError, match=r"'abacus'.*cpu, cuda"):
        choose(device="abacus")


def test_a_backend_that_is_not_there():
    with pytest.raises(ConfigError, match=r"no backend 'tpu'; there are native, torch"):
        choose("tpu")


def test_without_torch_the_extra_is_named(monkeypatch, model_file):
    path = model_file()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert rookery.load(path).generate("x", max_tokens=3, seed=1)
    with pytest.raises(MissingExtraError, match=r"pip install 'rookery\[train\]'"):
        rookery.load(path, backend="torch")


def test_an_engine_that_was_not_built(monkeypatch):
    row = replace(BACKENDS["native"], requires="rookery.native.absent")
    monkeypatch.setitem(BACKENDS, "native", row)
    assert choose(device="cpu") == "torch"
    with pytest.raises(MissingExtraError, match=r"native engine, which was not built"):
        choose("native")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is available")
def test_a_device_that_torch_cannot_use(model_file):
    with pytest.raises(ConfigError, match=r"cannot use the device 'cuda'"):
        rookery.load(model_file(), device="cuda")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dtype": "int3"}, "no number type 'int3'; there are float32"),
        ({"dtype": "float16", "backend": "native"}, "'float16'; it has float32, bfloat16, q8, q4; bfloat16"),
        ({"threads": 0}, "threads must be 1 or more"),
        ({"threads": 10**6, "backend": "native"}, "threads must be 1 to 256, not 1000000"),
    ],
)
def test_options_out_of_range(model_file, options, problem):
    with pytest.raises(ConfigError, match=problem):
        rookery.load(model_file(), **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_long_prompt_in_chunks_is_the_whole(model_file, version, backend):
    opened = rookery.load(model_file(version), backend=backend).backend
    tokens = np.random.default_rng(0).integers(0, 256, (2, PREFILL_CHUNK + 37))
    logits, state = opened.forward(tokens, opened.initial_state(2))
    with torch.inference_mode():
        whole, whole_state = from_checkpoint(checkpoints.load(model_file(version)))(torch.tensor(tokens))
    assert logits.dtype == np.float32
    assert logits.shape == (2, PREFILL_CHUNK + 37, 256)
    np.testing.assert_allclose(logits, whole.numpy(), rtol=0, atol=1e-4 * np.abs(logits).max())
    for part, expected in zip(opened.to_numpy(state), whole_state, strict=True):
        np.testing.assert_allclose(part, expected.numpy(), rtol=1e-4, atol=1e-4)
    last, _ = opened.forward(tokens, opened.initial_state(2), last_only=True)
    np.testing.assert_allclose(last, logits[:, -1:], rtol=0, atol=1e-5 * np.abs(logits).max())


TYPES = [
    *(("native", dtype) for dtype in ("float32", "fp32", "bfloat16", "bf16", "q8", "q4")),
    *(("torch", dtype) for dtype in ("float32", "fp32", "bfloat16", "bf16", "float16", "fp16")),
    *(("torch", dtype) for dtype in ("q8", "q4")),
]


@pytest.mark.parametrize(("backend", "dtype"), TYPES)
def test_every_dtype_runs_and_its_state_goes_to_numpy_and_back_exactly(model_file, backend, dtype):
    opened = rookery.load(model_file(), backend=backend, device="cpu", dtype=dtype).backend
    if isinstance(opened, TorchBackend):
        assert opened.dtype == getattr(torch, DTYPES[dtype], torch.float32)
    logits, state = opened.forward(np.array([[1, 2, 3]]), opened.initial_state())
    assert logits.dtype == np.float32
    assert state.wkv.dtype in (torch.float32, np.float32)
    arrays = opened.to_numpy(state)
    assert {part.dtype for part in arrays} == {np.dtype(np.float32)}
    for part, again in zip(state, opened.from_numpy(arrays), strict=True):
        assert part.dtype == again.dtype
        assert part.tolist() == again.tolist()


def test_every_type_of_the_table_is_tried():
    assert {dtype for _, dtype in TYPES} == set(DTYPES)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copied_state_shares_no_memory(model_file, backend):
    opened = rookery.load(model_file(), backend=backend).backend
    _, state = opened.forward(np.array([[1, 2, 3]]), opened.initial_state())
    arrays = opened.to_numpy(state)
    before = state.wkv.tolist()
    arrays.wkv[:] = 7
    assert state.wkv.tolist() == before


def test_the_default_dtype_of_torch_on_a_cpu_is_float32(model_file, tmp_path):
    halved = checkpoints.cast(checkpoints.load(model_file()), "bfloat16")
    checkpoints.save(halved, tmp_path / "half.safetensors")
    opened = rookery.load(tmp_path / "half.safetensors", backend="torch", device="cpu").backend
    assert isinstance(opened, TorchBackend)
    assert opened.dtype == torch.float32


@pytest.mark.parametrize("version", ["4", "7"])
def test_a_recorded_step_is_a_step_and_leaves_its_state_alone(model_file, version):
    model = from_checkpoint(checkpoints.load(model_file(version))).requires_grad_(False)
    plain, recorded = TorchBackend(model), TorchBackend(model, graphs=True)
    _, state = plain.forward(np.array([[1, 2, 3]]), plain.initial_state())
    before = plain.to_numpy(state)
    for token in (4, 5):
        wanted, after = plain.forward(np.array([[token]]), state)
        got, other = recorded.forward(np.array([[token]]), state)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
        for part, expected in zip(other, after, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-6)
    for part, expected in zip(plain.to_numpy(state), before, strict=True):
        np.testing.assert_array_equal(part, expected)


def test_a_model_that_is_tried_out_can_go_on_training(model_file):
    module = from_checkpoint(checkpoints.load(model_file())).train()
    backend = TorchBackend(module)
    backend.forward(np.array([[1, 2]]), backend.initial_state())
    assert module.training
    logits, _ = module(torch.tensor([[1, 2]]))
    logits.sum().backward()
    assert module.head.weight.grad is not None
