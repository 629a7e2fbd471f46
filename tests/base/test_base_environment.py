"""The base install: the wheel in an environment of its own, made by `make test-base`, without torch.

The files of models are made here, by numpy alone; every command runs there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rookery import checkpoints
from rookery.config import sized

ROOT = Path(__file__).parents[2]
BASE = os.environ.get("ROOKERY_BASE")

pytestmark = pytest.mark.skipif(not BASE, reason="`make test-base` makes the environment and runs these")

ABOUT = """
import importlib.metadata, importlib.util, json, sys
import rookery
print(json.dumps({
    "file": rookery.__file__,
    "installed": sorted({each.metadata["Name"].lower() for each in importlib.metadata.distributions()}),
    "requires": importlib.metadata.requires("rookery"),
    "found": [name for name in ("torch", "matplotlib", "pytest", "gguf") if importlib.util.find_spec(name)],
}))
"""


def run(*arguments: str, folder: Path, text: str | None = None) -> str:
    """What a command of the base environment prints. It runs outside of the checkout."""
    assert BASE is not None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(Path(BASE) / "bin" / arguments[0]), *arguments[1:]]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", input=text or ""
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A small RWKV-7 over bytes, and one with the World vocabulary."""
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for name, vocab_size in (("bytes", 256), ("world", 65536)):
        config = sized("7", vocab_size=vocab_size, width=64, num_layers=2)
        rng = np.random.default_rng(0)
        tensors = {
            tensor: rng.normal(scale=0.3, size=shape).astype(np.float32)
            for tensor, shape in checkpoints.expected_shapes(config).items()
        }
        paths[name] = folder / f"{name}.safetensors"
        checkpoint = checkpoints.Checkpoint(config=config, tensors=tensors, tokenizer={"kind": name})
        checkpoints.save(checkpoint, paths[name])
    return paths


def normal(requirement: str) -> str:
    """A requirement as package metadata writes it."""
    return requirement.replace(" ", "").replace('"', "'")


def test_what_is_installed(tmp_path: Path):
    about = json.loads(run("python", "-c", ABOUT, folder=tmp_path))
    assert str(BASE) in about["file"]
    assert about["found"] == []
    assert {"numpy", "safetensors", "rookery"} <= set(about["installed"])
    assert not [name for name in about["installed"] if re.match("torch|nvidia|triton", name)]
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    base = [each for each in about["requires"] if "extra ==" not in each]
    assert sorted(map(normal, base)) == sorted(map(normal, wanted))


def test_help(tmp_path: Path):
    for arguments in (["--help"], ["generate", "--help"], ["chat", "--help"], ["inspect", "--help"]):
        assert "rookery" in run("rookery", *arguments, folder=tmp_path)


@pytest.mark.parametrize("name", ["bytes", "world"])
def test_inspect_and_convert(models: dict[str, Path], name: str, tmp_path: Path):
    assert "RWKV-7" in run("rookery", "inspect", str(models[name]), folder=tmp_path)
    for file in ("model.pth", "half.safetensors"):
        run("rookery", "convert", str(models[name]), str(tmp_path / file), folder=tmp_path)
        assert (tmp_path / file).stat().st_size > 100_000


@pytest.mark.parametrize("name", ["bytes", "world"])
@pytest.mark.parametrize("kind", ["q8", "q4"])
def test_quantize_and_generate(models: dict[str, Path], name: str, kind: str, tmp_path: Path):
    file = str(tmp_path / "model.gguf")
    run("rookery", "quantize", str(models[name]), "--type", kind, "-o", file, folder=tmp_path)
    options = ["--seed", "1", "--max-tokens", "12"]
    first = run("rookery", "generate", file, "Es war einmal", *options, folder=tmp_path)
    assert first == run("rookery", "generate", file, "Es war einmal", *options, folder=tmp_path)
    assert first


@pytest.mark.parametrize("name", ["bytes", "world"])
def test_generate(models: dict[str, Path], name: str, tmp_path: Path):
    model = str(models[name])
    options = ["--seed", "1", "--max-tokens", "12", "--save-state", "state.safetensors"]
    text = run("rookery", "generate", model, "It was a", *options, folder=tmp_path)
    assert text
    assert text == run("rookery", "generate", model, *options, folder=tmp_path, text="It was a\n")
    more = run(
        "rookery", "generate", model, "--state", "state.safetensors", "--max-tokens", "5", folder=tmp_path
    )
    assert more


@pytest.mark.parametrize("name", ["bytes", "world"])
def test_chat(models: dict[str, Path], name: str, tmp_path: Path):
    options = ["--seed", "1", "--max-tokens", "8"]
    assert run("rookery", "chat", str(models[name]), *options, folder=tmp_path, text="Hello\n/exit\n")


def test_python(models: dict[str, Path], tmp_path: Path):
    code = (
        "import sys, rookery\n"
        "model = rookery.load(sys.argv[1])\n"
        "print(len(model.generate('Hello', max_tokens=5, seed=1)) > 0, 'torch' in sys.modules)\n"
    )
    assert run("python", "-c", code, str(models["world"]), folder=tmp_path) == "True False\n"


def test_training_says_which_extra_brings_torch(tmp_path: Path):
    assert BASE is not None
    (tmp_path / "text.txt").write_text("text " * 1000)
    done = subprocess.run(
        [str(Path(BASE) / "bin" / "rookery"), "train", "text.txt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "pip install 'rookery[train]'" in done.stderr


def test_the_wheel_has_the_extension_and_no_source():
    (wheel,) = (ROOT / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if re.fullmatch(r"rookery/native/_engine\..*(so|pyd)", name)]
    assert not [name for name in names if "csrc" in name or name.endswith((".cpp", ".h", ".o"))]
    assert {name.split("/")[0] for name in names} <= {"rookery", wheel.name.split("-cp")[0] + ".dist-info"}


def test_the_source_distribution_has_all_that_a_build_needs():
    (archive,) = (ROOT / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.split("/", 1)[1] for name in file.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*") if path.is_file()}
    assert sources | {"CMakeLists.txt", "pyproject.toml", "src/rookery/__init__.py", "LICENSE"} <= names
    assert not [name for name in names if name.endswith((".so", ".o")) or name.startswith("build/")]
