"""A few hundred malformed inputs; CONTRIBUTING.md says how to try thousands."""

from __future__ import annotations

import pytest

from scripts.fuzz import TARGETS, run


@pytest.mark.parametrize("target", TARGETS)
def test_malformed_input_gives_typed_errors(target: str) -> None:
    report = run(target, inputs=300, seed=7)
    assert report.failures == []
    assert report.inputs == 300
    # Both what is refused and what is not are among them.
    assert 50 < report.refused < 300


def test_a_crash_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def crashing(folder: object) -> object:
        tried: list[int] = []

        def one(rng: object) -> bool:
            tried.append(0)
            if len(tried) == 3:
                os._exit(9)
            if len(tried) == 2:
                raise ZeroDivisionError
            return False

        return one

    monkeypatch.setitem(TARGETS, "crashing", crashing)
    report = run("crashing", inputs=4, seed=0)
    assert report.inputs == 4
    assert [text.split(":")[0] for text in report.failures] == ["input 1", "input 2"]
    assert "ZeroDivisionError" in report.failures[0]
    assert "the process died (9)" in report.failures[1]
