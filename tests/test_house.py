"""The house is in order: what the tools of the gate do not hold by themselves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rookery.files import atomic_write, shown

ROOT = Path(__file__).resolve().parents[1]
TORCH_WING = {"ops", "models", "rivals", "train", "evaluate"}
TORCH_PARTS = {("generate", "torch_backend.py"), ("generate", "batch")}


def test_torch_is_imported_in_the_torch_wing_only():
    """import-linter follows chains of imports; this reads the files, function bodies included."""
    source = ROOT / "src" / "rookery"
    for path in source.rglob("*.py"):
        parts = path.relative_to(source).parts
        if parts[0] in TORCH_WING or parts[:2] in TORCH_PARTS:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not re.match(r"\s*(import|from) torch\b", line), f"{path}:{number} imports torch"


def test_constraints_pin_torch_and_every_direct_dependency():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = [
        *project["dependencies"],
        *(d for extra in project["optional-dependencies"].values() for d in extra),
    ]
    for requirement in wanted:
        name = re.split(r"[<>=;\[ ]", requirement)[0].lower().replace("_", "-")
        assert name == "rookery" or name in pinned, f"{name} is not pinned in constraints.txt"
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


def test_make_help_lists_every_target():
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"setup", "demo", "test", "test-slow"} <= targets
    for target in targets:
        assert f"make {target} " in text


def test_source_files_stay_under_500_lines():
    for path in (ROOT / "src").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 500, f"{path} wants to be two"


def test_atomic_write_replaces_and_keeps_the_mode(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    target.chmod(0o640)
    with atomic_write(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_atomic_write_leaves_the_old_file_after_an_error(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def fail_halfway() -> None:
        with atomic_write(target) as file:
            file.write(b"half")
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="full"):
        fail_halfway()
    assert target.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights on Windows")
def test_atomic_write_follows_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with atomic_write(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_paths_below_the_current_folder_are_shown_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "runs" / "book") == str(Path("runs") / "book")
    assert shown(tmp_path.parent) == str(tmp_path.parent)
