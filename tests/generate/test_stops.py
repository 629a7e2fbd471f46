from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery.generate.stops import StopScanner

LETTERS = st.text(alphabet="ab\n", max_size=12)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3)


def cut_by_definition(text: str, stops: list[str]) -> str | None:
    """The text before the stop string whose last character comes first; of those, the longest."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return None


@given(pieces=st.lists(LETTERS, max_size=8), stops=STOPS)
def test_a_scan_is_what_the_definition_says_however_the_text_is_cut(pieces, stops):
    scanner = StopScanner(stops)
    expected = cut_by_definition("".join(pieces), stops)
    passed, came = "", ""
    for piece in pieces:
        came += piece
        passed += scanner.push(piece)
        assert came.startswith(passed)
        if scanner.stopped:
            break
        # What is held is the least that must be: an end of the text that some stop string begins with.
        assert passed + scanner.held == came
        assert scanner.held == "" or any(stop.startswith(scanner.held) for stop in stops)
    assert scanner.stopped == (expected is not None)
    if expected is None:
        assert passed + scanner.flush() == came
    else:
        assert passed == expected
        assert scanner.flush() == ""


@pytest.mark.parametrize(
    ("pieces", "passed"),
    [
        (["Hello", "\n", "\nUser", ": x"], ["Hello", "", "", ""]),
        (["a\n", "b"], ["a", "\nb"]),
        (["\n\nUs", "e me"], ["", "\n\nUse me"]),
    ],
)
def test_a_beginning_of_a_stop_string_is_held_back(pieces, passed):
    scanner = StopScanner(["\n\nUser:"])
    assert [scanner.push(piece) for piece in pieces] == passed
