"""What importing costs, what works without torch, and the names that the modules offer."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery

MODULES = ["rookery"] + [
    module.name
    for module in pkgutil.walk_packages(rookery.__path__, "rookery.")
    if not module.name.endswith(("__main__", "_engine"))
]


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def blocked(folder: Path, *modules: str) -> dict[str, str]:
    """An environment in which modules and all that is inside them cannot be imported."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if any(name == each or name.startswith(each + '.') for each in {modules!r}):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
    )
    return {"PYTHONPATH": str(folder)}


@pytest.fixture
def without_torch(tmp_path) -> dict[str, str]:
    """An environment without torch and what comes with the extras."""
    return blocked(tmp_path, "torch", "matplotlib")


# Seconds of the CPU, and the best of several: what else the machine does is not of interest here.
def test_importing_takes_under_a_fifth_of_a_second_and_no_torch():
    code = (
        "import time; start = time.process_time(); import rookery; seconds = time.process_time() - start\n"
        "import sys; assert not {'torch', 'numpy', 'importlib.metadata'} & set(sys.modules); print(seconds)"
    )
    assert min(float(python(code)) for _ in range(3)) < 0.2


def test_the_version_is_that_of_the_installation():
    from importlib.metadata import version

    assert rookery.__version__ == version("rookery")
    assert python("import rookery; print(rookery.__version__)").strip() == rookery.__version__


def test_help_takes_under_three_tenths_of_a_second():
    code = (
        "import io, sys, time; from contextlib import redirect_stdout; from rookery.cli import main\n"
        "with redirect_stdout(io.StringIO()): main(['--help'])\n"
        "print(time.process_time())"
    )
    assert min(float(python(code)) for _ in range(3)) < 0.3


def test_generate_is_imported_without_torch():
    python("import rookery, sys; rookery.load, rookery.Session; assert 'torch' not in sys.modules")


def test_what_works_without_torch(without_torch, byte_model_arrays):
    path = byte_model_arrays
    python("import rookery, rookery.tokenizers, rookery.checkpoints, rookery.generate", **without_torch)
    python("from rookery.tokenizers import named; assert named('world').decode([65]) == '@'", **without_torch)
    run = "import sys; from rookery.cli import main; sys.exit(main({}))"
    assert "rookery" in python(run.format(["--help"]), **without_torch)
    assert "7" in python(run.format(["inspect", str(path)]), **without_torch)
    converted = path.with_suffix(".pth")
    python(run.format(["convert", str(path), str(converted)]), **without_torch)
    assert converted.exists()


def test_a_model_runs_without_torch(without_torch, byte_model_arrays):
    run = "import sys; from rookery.cli import main; sys.exit(main({}))"
    options = ["--max-tokens", "5", "--seed", "1", "--dtype", "q8", "--threads", "1"]
    assert python(run.format(["generate", str(byte_model_arrays), "one", *options]), **without_torch)
    chat = ["chat", str(byte_model_arrays), *options]
    result = subprocess.run(
        [sys.executable, "-m", "rookery", *chat],
        capture_output=True,
        text=True,
        input="hello\n",
        env={**os.environ, **without_torch},
    )
    assert result.returncode == 0, result.stderr


def test_a_model_is_measured_without_torch(without_torch, byte_model_arrays, tmp_path):
    (tmp_path / "text.txt").write_text("A rook is a bird.")
    question = (
        '{"context": "It is black.", "question": "What?", "choices": ["a rook", "a swan"], "answer": 0}'
    )
    (tmp_path / "questions.jsonl").write_text(question)
    run = "import sys; from rookery.cli import main; sys.exit(main({}))"
    model, out = str(byte_model_arrays), str(tmp_path / "out")
    text = ["eval", model, "--text", str(tmp_path / "text.txt"), "--out", out]
    assert "bits per byte" in python(run.format(text), **without_torch)
    questions = ["eval", model, "--questions", str(tmp_path / "questions.jsonl"), "--out", out]
    assert "per byte" in python(run.format(questions), **without_torch)
    prompts = ["prompts", model, str(tmp_path / "questions.jsonl"), "--out", out, "--formats", "lines"]
    assert "question before" in python(run.format(prompts), **without_torch)


def test_what_needs_torch_says_which_extra_brings_it(without_torch, byte_model_arrays):
    result = subprocess.run(
        [sys.executable, "-m", "rookery", "generate", str(byte_model_arrays), "--device", "cuda"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **without_torch},
    )
    assert result.returncode == 2
    assert result.stderr == (
        "rookery: error: Running a model needs torch, which is not installed: pip install 'rookery[train]'\n"
    )


TRAINED = """
import torch
from rookery.config import sized
from rookery.models import RWKV

def trained(version):
    "The loss of a small model, and the norm of its gradient."
    torch.manual_seed(0)
    model = RWKV(sized(version, vocab_size=11, width=32, num_layers=2))
    with torch.no_grad():
        for x in model.parameters():
            x.copy_(torch.randn(x.shape) / x.shape[-1] ** 0.5)
    starts = torch.zeros(2, 19, dtype=torch.bool)
    starts[1, 7] = True
    logits, state = model(torch.arange(38).view(2, 19) % 11, starts=starts)
    loss = logits.square().mean() + state.wkv.square().mean()
    loss.backward()
    return float(loss.detach()), float(sum(x.grad.square().sum() for x in model.parameters()).sqrt())
"""


def test_what_works_without_the_native_engine(tmp_path, byte_model_arrays):
    """Machines with a GPU may have no compiler; torch computes there, on the CPU by other implementations."""
    code = TRAINED + (
        "import sys, rookery.ops, rookery.train, rookery.generate\n"
        "from rookery.cli import main\n"
        "assert rookery.ops.chosen('wkv7', tokens=19) == 'chunked'\n"
        f"path = {str(byte_model_arrays)!r}\n"
        "try: rookery.load(path, backend='native')\n"
        "except rookery.MissingExtraError as error: print(error, file=sys.stderr)\n"
        "assert main(['quantize', path, '--type', 'q8', '-o', path + '.gguf']) == 2\n"
        "assert main(['generate', path, 'one', '--max-tokens', '3', '--seed', '1', '--threads', '1']) == 0\n"
        "print()\n"
        "print(*trained('4'), *trained('7'))\n"
    )
    environment = {**os.environ, **blocked(tmp_path, "rookery.native._engine"), "TRITON_INTERPRET": "0"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "needs the native engine, which was not built" in result.stderr
    assert "rookery: error: The native engine was not built" in result.stderr
    here: dict[str, Any] = {}
    exec(TRAINED, here)
    wanted = [*here["trained"]("4"), *here["trained"]("7")]
    assert [float(x) for x in result.stdout.splitlines()[-1].split()] == pytest.approx(wanted, rel=1e-4)


def test_sampling_without_the_native_engine(monkeypatch):
    from rookery.errors import ConfigError, MissingExtraError
    from rookery.generate import Sampler, SamplingParams, sample_batch, sampling

    def samplers() -> list[Sampler]:
        return [Sampler(SamplingParams(seed=seed, banned_tokens=(seed,))) for seed in range(3)]

    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    wanted = sample_batch(samplers(), logits, threads=1)
    monkeypatch.setattr(sampling, "_engine", None)
    streams = samplers()
    assert sample_batch(streams, logits) == wanted
    other = streams[0].fork()
    assert streams[0].sample(logits[0]) == other.sample(logits[0], implementation="reference")
    logits[2] = -np.inf
    with pytest.raises(ConfigError, match="no token is left"):
        sample_batch(streams, logits)
    assert [stream.step for stream in streams] == [2, 1, 1]
    with pytest.raises(MissingExtraError, match="not built"):
        streams[0].sample(logits[0], implementation="native")


@pytest.fixture
def byte_model_arrays(tmp_path) -> Path:
    """A model file written without torch."""
    import numpy as np

    from rookery import checkpoints
    from rookery.config import sized

    config = sized("7", vocab_size=256, width=32, num_layers=2)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in checkpoints.expected_shapes(config).items()
    }
    path = tmp_path / "model.safetensors"
    checkpoints.save(
        checkpoints.Checkpoint(config=config, tensors=tensors, tokenizer={"kind": "bytes"}), path
    )
    return path


@pytest.mark.parametrize("name", MODULES)
def test_every_name_offered_is_there(name):
    module = import_module(name)
    assert isinstance(module.__all__, list)
    assert len(module.__all__) == len(set(module.__all__))
    for offered in module.__all__:
        assert getattr(module, offered) is not None
        assert not offered.startswith("_") or offered == "__version__"


# What users import: a name that appears or goes is a decision, taken here too.
PUBLIC = {
    "rookery": [
        "CheckpointError",
        "ConfigError",
        "DataError",
        "LanguageModel",
        "MissingExtraError",
        "ModelConfig",
        "RookeryError",
        "SamplingParams",
        "Session",
        "State",
        "StateError",
        "TokenizerError",
        "TrainingError",
        "__version__",
        "load",
    ],
    "rookery.checkpoints": [
        "BLOCK",
        "BLOCK_BYTES",
        "Checkpoint",
        "DTYPES",
        "Quantized",
        "Weight",
        "assemble",
        "cast",
        "check_finite",
        "config_from_tensors",
        "dense",
        "dequantize",
        "dtype_name",
        "expected_shapes",
        "load",
        "optional_shapes",
        "save",
        "save_huggingface",
    ],
    "rookery.config": ["PRESETS", "VERSIONS", "ModelConfig", "Size", "Version", "preset", "sized"],
    "rookery.errors": [
        "CheckpointError",
        "ConfigError",
        "DataError",
        "MissingExtraError",
        "RookeryError",
        "StateError",
        "TokenizerError",
        "TrainingError",
        "find",
        "require",
    ],
    "rookery.generate": [
        "BACKENDS",
        "DTYPES",
        "MAX_UNDO",
        "Backend",
        "Chat",
        "ChatTemplate",
        "LanguageModel",
        "Sampler",
        "SamplingParams",
        "Session",
        "choose",
        "load",
        "sample_batch",
    ],
    "rookery.native": ["MAX_THREADS", "NativeModel", "load"],
    "rookery.models": ["RWKV", "from_checkpoint", "init_weights", "parameter_groups", "to_tensors"],
    "rookery.rivals": [
        "MIXERS",
        "Mixer",
        "RivalConfig",
        "build",
        "leaves",
        "load",
        "load_tokenizer",
        "map_state",
        "save",
        "sizes_for",
        "state_bytes",
    ],
    "rookery.state": ["State", "check_state", "initial_state", "state_bytes", "state_shapes"],
    "rookery.tokenizers": [
        "ByteTokenizer",
        "CharTokenizer",
        "JsonTokenizer",
        "StreamDecoder",
        "Tokenizer",
        "WorldTokenizer",
        "from_spec",
        "guess",
        "named",
    ],
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_locked(name):
    assert sorted(import_module(name).__all__) == sorted(PUBLIC[name])


def test_dir_lists_what_is_imported_later():
    assert dir(rookery) == sorted(rookery.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rookery.nothing
