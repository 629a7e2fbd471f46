"""Instruction sets: that one can be forced, and that no code of one can stand in for another's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rookery.native import _engine

ROOT = Path(__file__).parents[2]
CODE = "from rookery.native import _engine; print(_engine.instruction_set())"


def in_force(name: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ROOKERY_INSTRUCTION_SET": name}
    return subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment)


def test_portable_code_runs_everywhere_and_comes_first():
    assert _engine.available_instruction_sets()[0] == "portable"


@pytest.mark.parametrize("name", _engine.available_instruction_sets())
def test_the_environment_forces_one(name: str):
    assert in_force(name).stdout == f"{name}\n"


def test_the_last_is_the_default():
    assert in_force("").stdout.strip() == _engine.available_instruction_sets()[-1]


@pytest.mark.parametrize("name", ["sse9", "PORTABLE"])
def test_an_unknown_one_is_named(name: str):
    assert f"there is no instruction set '{name}'; there are portable" in in_force(name).stderr


def kernel_objects() -> list[Path]:
    """Compiled kernels of this checkout; the build with sanitizers inlines less, and is not distributed."""
    found = ROOT.glob("build/*/CMakeFiles/_engine.dir/csrc/kernels/**/*.o")
    return [path for path in found if "sanitize" not in path.parts]


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_kernels_share_no_symbols():
    """Of an inline function that several files compile, the linker keeps one: maybe the one for AVX-512.

    Machines without it would stop at an illegal instruction. So a kernel's file may define no weak symbol
    but those of its own namespace.
    """
    objects = kernel_objects()
    if not objects and not os.environ.get("CI"):
        pytest.skip("the extension was not built in this checkout")
    assert objects
    for path in objects:
        own = path.name.split(".")[0]
        listing = subprocess.run(["nm", "-P", str(path)], capture_output=True, text=True, check=True).stdout
        # Columns: name, type, value, size. W, V and u are weak and unique; lower case w and v are undefined.
        symbols = [line.split()[:2] for line in listing.splitlines()]
        assert any(kind in "DR" for _, kind in symbols), "the table of kernels"
        namespace = f"N7rookery{len(own)}{own}"
        shared = [name for name, kind in symbols if kind in "WVu" and namespace not in name]
        assert shared == [], f"{path.name}: make these always_inline, or keep them out of kernels"
