"""The arithmetic of measurements: what is compared with what, and what is written down."""

from __future__ import annotations

import json
import time

import pytest

from benchmarks.report import (
    Figure,
    interleaved,
    interleaved_medians,
    quotient,
    write_figures,
    write_markdown,
)

FIGURES = [
    Figure("speed", 2.5, "ratio", bound=2.0),
    Figure("memory", 80.0, "MB", bound=64, at_most=True),
    Figure("rate", 12345.6, "tok/s"),
]


def test_sides_run_in_turn_and_warming_up_does_not_count():
    calls: list[str] = []

    def side(name: str):
        return lambda: calls.append(name) or float(len(calls))

    measured = interleaved({"a": side("a"), "b": side("b")}, rounds=2, warm_up=1)
    assert calls == ["a", "b"] * 3
    assert measured == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_quotients_are_of_one_round():
    # The machine was three times slower in the second round: that is no difference of the sides.
    assert quotient([10.0, 30.0, 10.0], [5.0, 15.0, 5.0]) == 2.0


def test_medians_are_seconds():
    fast, slow = interleaved_medians([lambda: None, lambda: time.sleep(0.01)], repeats=3)
    assert fast < 0.01 <= slow < 1


def test_bounds_from_below_and_from_above():
    assert [each.holds for each in FIGURES] == [True, False, None]


def test_the_file_of_figures(tmp_path):
    write_figures(tmp_path / "figures.json", FIGURES, peers=["a-peer-that-nobody-has"])
    written = json.loads((tmp_path / "figures.json").read_text())
    row = {"figure": "speed", "value": 2.5, "unit": "ratio", "bound": 2.0, "holds": True}
    assert written["figures"][0] == row
    assert written["figures"][2]["bound"] is None
    assert written["machine"]["versions"]["a-peer-that-nobody-has"] is None


def test_the_table_stands_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n<!-- table -->\nold\n<!-- table -->\n\nAfter.\n")
    for _ in range(2):
        write_markdown(page, FIGURES)
    lines = page.read_text().splitlines()
    assert lines[0] == "Before."
    assert lines[-1] == "After."
    assert "| speed | 2.5 | ratio | ≥ 2 | yes |" in lines
    assert "| memory | 80 | MB | ≤ 64 | NO |" in lines
    assert "| rate | 12,346 | tok/s |  |  |" in lines
    assert "old" not in lines


def test_a_page_without_marks_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Nothing here.\n")
    with pytest.raises(ValueError, match="two marks"):
        write_markdown(page, FIGURES)
    assert page.read_text() == "Nothing here.\n"
