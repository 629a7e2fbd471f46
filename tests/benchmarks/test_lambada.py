"""The measurement of LAMBADA, with a small model and few items."""

from __future__ import annotations

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")

from benchmarks.lambada import make_requests, make_tokenizer, measure
from rookery.tokenizers import JsonTokenizer

TEXTS = [
    f"the {bird} sat on the {place} and sang to the other {bird}"
    for bird in ("rook", "owl")
    for place in ("elm", "roof")
]


def test_requests_end_in_the_last_word():
    assert [request.args for request in make_requests(["a b c"])] == [("a b", " c")]


def test_the_tokenizer_is_of_the_texts():
    tokenizer = JsonTokenizer(make_tokenizer(TEXTS))
    assert tokenizer.end_of_text == 0
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0]) / 3
    assert tokenizer.decode(tokenizer.encode("Any täxt?")) == "Any täxt?"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_both_sides_find_the_same():
    figures = measure(TEXTS, items=3, rounds=1, threads=1, layers=2, width=64, batches=(2,))
    by_name = {each.figure.removeprefix("LAMBADA, 3 items, "): each for each in figures}
    apart = "log-likelihoods of {} and hf float32 apart".format
    assert by_name[apart("rookery float32")].holds
    assert 0 < by_name[apart("rookery float32")].value < by_name[apart("rookery bfloat16")].value
    for dtype in ("float32", "bfloat16"):
        ratio = by_name[f"{dtype}, hf / rookery"]
        assert ratio.bound == 3
        theirs, ours = by_name[f"{dtype}, lm-eval's hf, batch 2"], by_name[f"{dtype}, rookery"]
        assert ratio.value == pytest.approx(theirs.value / ours.value)
