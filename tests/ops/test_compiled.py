"""The kernels as Triton compiles them for an H100: what its interpreter does not see is seen here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# Bytes of shared memory that a program may have: of GPUs for desktops from Ampere on, and of the H100.
DESKTOP, H100 = 101_376, 232_448

RECURRENCES = {
    "wkv4": {"forward", "backward", "sums", "join", "gradient_sums", "gradient_join"},
    "wkv5": {"forward", "backward"},
    "wkv6": {"forward", "backward"},
    "wkv7": {"solve", "forward", "backward", "compose", "retreat"},
    "gla": {"forward", "backward"},
}
STEPS = {"step4", "step6", "step7", "embed", "project", "mix", "add_product", "key", "head"}


def compiled(case: str, cache: Path) -> dict[str, list[int]]:
    """Kernel -> how often it was compiled, and the most shared memory."""
    command = [sys.executable, str(Path(__file__).with_name("compile_for_gpu.py")), case]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "name",
    [
        each if each in ("wkv6", "wkv7") else pytest.param(each, marks=pytest.mark.slow)
        for each in RECURRENCES
    ],
)
def test_recurrences_find_room_on_any_gpu(name: str, tmp_path: Path) -> None:
    kernels = compiled(name, tmp_path)
    assert set(kernels) == RECURRENCES[name]
    assert all(shared <= DESKTOP for _, shared in kernels.values()), kernels


def test_rwkv7_and_its_output_find_room_on_any_gpu(tmp_path: Path) -> None:
    kernels = compiled("wkv7 and its output", tmp_path)
    # Forward and backward are of the recurrence and of its output.
    assert set(kernels) == {"solve", "forward", "backward", "compose", "retreat", "add_up"}
    assert all(shared <= DESKTOP for _, shared in kernels.values()), kernels


@pytest.mark.slow
def test_rwkv7_and_its_output_at_heads_of_128_find_room_on_an_h100(tmp_path: Path) -> None:
    kernels = compiled("wkv7 and its output, heads of 128", tmp_path)
    assert all(shared <= H100 for _, shared in kernels.values()), kernels


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wkv6", "wkv7"])
def test_heads_of_128_and_float32_find_room_on_an_h100(name: str, tmp_path: Path) -> None:
    kernels = compiled(f"{name} of other sizes", tmp_path)
    assert all(shared <= H100 for _, shared in kernels.values()), kernels


def test_steps_of_decoding_find_room_on_any_gpu(tmp_path: Path) -> None:
    kernels = compiled("decoding", tmp_path)
    assert set(kernels) == STEPS
    assert all(shared <= DESKTOP for _, shared in kernels.values()), kernels


def test_elementwise_kernels_find_room_on_any_gpu(tmp_path: Path) -> None:
    kernels = compiled("elementwise", tmp_path)
    shifted = {"fold", "fold_backward", "add_previous", "spread"}
    assert set(kernels) == {"forward", "backward", "add_up", *shifted, "cross_entropy", "vector", "tile"}
    assert (kernels["forward"][0], kernels["backward"][0]) == (12, 11)
    assert all(shared <= DESKTOP for _, shared in kernels.values()), kernels
