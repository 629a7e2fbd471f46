"""`python -m benchmarks.narrow` in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.narrow import DECAYS, STREAM, main
from rookery.cli import main as rookery
from rookery.models import rwkv6, rwkv7, sequence_model


@pytest.mark.parametrize(("version", "decays"), [("5.2", False), ("6", True), ("7", True)])
def test_parts_are_rounded_one_at_a_time(version: str, decays: bool, tmp_path: Path, capsys) -> None:
    text, run, out = tmp_path / "text", tmp_path / "run", tmp_path / "figures.json"
    text.write_text("a rook and a crow and a jackdaw sat in the ash. " * 200)
    shape = ["--layers", "2", "--width", "32", "--head-size", "16", "--ffn-width", "64"]
    how = ["--tokens", "2k", "--context", "16", "--batch", "4", "--out", str(run)]
    rookery(["train", str(text), "--version", version, *shape, *how])
    before = rwkv7.rwkv7_inputs, rwkv6.rwkv6_decay, sequence_model.add_norm
    main([str(run), "--json", str(out)])
    assert before == (rwkv7.rwkv7_inputs, rwkv6.rwkv6_decay, sequence_model.add_norm)

    name = f"RWKV-{version}, 2 layers of 32"
    figures = {each["figure"]: each["value"] for each in json.loads(out.read_text())["figures"]}
    errors = {key.removeprefix(f"{name}: "): value for key, value in figures.items()}
    assert f"| {name} | {STREAM} |" in capsys.readouterr().out
    assert all(0 < value < 0.1 for value in errors.values()), errors
    assert (f"{DECAYS}, KL" in errors) == decays
    for what in ("KL", "error of the gradient"):
        if decays:
            assert errors[f"{DECAYS}, {what}"] < errors[f"{STREAM}, {what}"]
        assert errors[f"autocast, {what}"] != errors[f"autocast, {STREAM}, {what}"]
