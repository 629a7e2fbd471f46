from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery.errors import DataError
from rookery.tokenizers import CharTokenizer, named
from rookery.train.data import IGNORED, TokenStream, TrainingOrder, bytes_of_tokens, pack
from rookery.train.documents import Document


def stream(n: int) -> TokenStream:
    return TokenStream(np.arange(n, dtype=np.uint16), None, separated=False)


def test_one_text_is_its_tokens():
    packed = pack([Document("a", "hey")], named("bytes"))
    assert packed.tokens.tolist() == list(b"hey")
    assert packed.starts is None


def test_documents_begin_with_the_end_of_text():
    packed = pack([Document("a", "hi"), Document("b", "x"), Document("c", "yo")], named("bytes"))
    assert packed.tokens.tolist() == list(b"\0hi\0x\0yo")
    assert packed.starts is not None
    assert packed.starts.tolist() == [True, False, False, True, False, True, False, False]
    rows = packed.rows([0], 7)
    # The end of a document is learnt.
    assert rows.targets.tolist() == [list(b"hi\0x\0yo")]
    assert [d.tolist() for d in packed.documents()] == [list(b"\0hi"), list(b"\0x"), list(b"\0yo")]


def test_without_an_end_of_text_no_document_predicts_the_next():
    tokenizer = CharTokenizer("hixyo")
    packed = pack([Document("a", "hi"), Document("b", "x"), Document("c", "yo")], tokenizer)
    rows = packed.rows([0], 4)
    assert rows.inputs.tolist() == [tokenizer.encode("hixy")]
    assert rows.starts is not None
    assert rows.starts.tolist() == [[True, False, True, True]]
    assert rows.targets.tolist() == [[1, IGNORED, IGNORED, 4]]


def test_rows_stop_at_the_end_of_the_stream():
    rows = stream(5).rows([3], 4)
    assert rows.targets.tolist() == [[4, IGNORED, IGNORED, IGNORED]]


@given(n=st.integers(2, 300), length=st.integers(1, 64))
def test_windows_predict_every_token_but_the_first_once(n, length):
    whole = stream(n)
    targets = whole.rows(whole.windows(length), length).targets
    assert sorted(targets[targets != IGNORED].tolist()) == list(range(1, n))


@given(n=st.integers(100, 1000), limit=st.integers(10, 90))
def test_a_limit_leaves_out_windows_evenly(n, limit):
    positions = stream(n).windows(10, limit=limit)
    assert len(positions) == limit // 10
    assert positions[0] == 0
    if len(positions) > 1:
        gaps = np.diff(positions)
        assert gaps.max() - gaps.min() <= 10
        assert positions[-1] == (n - 2) // 10 * 10


@given(
    n=st.integers(11, 500),
    context=st.integers(1, 10),
    batch=st.integers(1, 7),
    seed=st.integers(0, 2**32 - 1),
    step=st.integers(0, 50),
)
def test_the_order_depends_on_the_step_alone(n, context, batch, seed, step):
    order = TrainingOrder(stream(n), context=context, batch=batch, seed=seed)
    again = TrainingOrder(stream(n), context=context, batch=batch, seed=seed)
    for other in range(step):
        again.rows(other)
    positions = order.positions(step)
    assert positions.tolist() == again.positions(step).tolist()
    assert positions.min() >= 0
    assert positions.max() + context < n
    # Two batches of half the rows are the same rows.
    halves = TrainingOrder(stream(n), context=context, batch=1, seed=seed)
    singles = [halves.positions(step * batch + row)[0] for row in range(batch)]
    assert positions.tolist() == singles


def test_an_epoch_sees_each_window_once_and_the_next_another_cut():
    order = TrainingOrder(stream(1001), context=10, batch=1, seed=3)
    n = order.windows_per_epoch
    first, second = (sorted(order.positions(e * n + i)[0] for i in range(n)) for e in (0, 1))
    assert n == 99
    for epoch in (first, second):
        assert np.diff(epoch).tolist() == [10] * (n - 1)
    assert first != second
    assert [order.positions(i)[0] for i in range(n)] != first


def test_seeds_give_different_orders():
    a, b = (TrainingOrder(stream(1001), context=10, batch=8, seed=seed) for seed in (1, 2))
    assert a.positions(0).tolist() != b.positions(0).tolist()


def test_data_shorter_than_the_context_is_named():
    with pytest.raises(DataError, match=r"a\.txt: 10 tokens .* context of 10, which needs at least 11"):
        TrainingOrder(stream(10), context=10, batch=1, seed=0, name="a.txt")
    assert TrainingOrder(stream(11), context=10, batch=2, seed=0).positions(5).tolist() == [0, 0]


def test_fingerprints_tell_tokens_and_boundaries_apart():
    documents = [Document("a", "xy"), Document("b", "z")], [Document("a", "x"), Document("b", "yz")]
    one, two = (pack(each, CharTokenizer("xyz")) for each in documents)
    assert one.tokens.tolist() == two.tokens.tolist()
    assert one.fingerprint() != two.fingerprint()
    assert one.fingerprint() == pack(documents[0], CharTokenizer("xyz")).fingerprint()


def test_bytes_of_tokens_counts_utf8():
    assert bytes_of_tokens(CharTokenizer("aü€")).tolist() == [1, 2, 3]
