"""Likelihoods against a plain computation: one forward pass of the whole, log-softmax in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery.checkpoints import Checkpoint
from rookery.config import VERSIONS, sized
from rookery.errors import ConfigError, StateError
from rookery.evaluate import pool, prefix_tree
from rookery.evaluate.likelihood import LikelihoodEngine, Pair
from rookery.generate import LanguageModel
from rookery.generate.backend import open_backend
from rookery.models import to_tensors

VOCABULARY = 203


@pytest.fixture(scope="session")
def scored_model(random_model) -> Callable[..., LanguageModel]:
    @cache
    def make(version: str = "7", backend: str = "native") -> LanguageModel:
        config = sized(version, vocab_size=VOCABULARY, width=64, num_layers=2)
        checkpoint = Checkpoint(config=config, tensors=to_tensors(random_model(config)))
        return LanguageModel(open_backend(checkpoint, name=backend, device="cpu", dtype="float32", threads=1))

    return make


def plain(model: LanguageModel, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    ids = np.array(pair.context + pair.continuation)
    logits, _ = model(ids[:-1])
    wanted = pool.log_softmax(logits[len(pair.context) - 1 :])
    following = ids[len(pair.context) :]
    return wanted[np.arange(len(following)), following], wanted.argmax(1) == following


def random_pairs(model: LanguageModel, seed: int = 0) -> list[Pair]:
    """Single ones, choices after one context, contexts that begin alike, one inside another, one twice."""
    rng = np.random.default_rng(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, VOCABULARY, count).tolist())

    shared, longer = ids(23), ids(9)
    likely = int(model(shared)[0][-1].argmax())
    pairs = [Pair(ids(n), ids(m)) for n, m in [(1, 1), (40, 3), (2, 70), (7, 1)]]
    pairs += [Pair(shared, (choice,)) for choice in (3, likely, 5)]
    pairs += [Pair(shared, ids(4)), Pair(shared, (3, *ids(6))), Pair(shared + longer, ids(2))]
    pairs += [Pair(shared + longer + ids(5), ids(2)), pairs[0], pairs[5], Pair(shared[:11], shared[11:])]
    return pairs


def check(model: LanguageModel, pairs: list[Pair], **options: int) -> LikelihoodEngine:
    engine = LikelihoodEngine(model, **options)
    for pair, scores in zip(pairs, engine.score(pairs), strict=True):
        values, likeliest = plain(model, pair)
        np.testing.assert_allclose(scores.log_probabilities, values, atol=1e-4, rtol=0)
        np.testing.assert_array_equal(scores.likeliest, likeliest)
        assert scores.total == pytest.approx(values.sum(), abs=1e-4)
        assert scores.greedy == likeliest.all()
    return engine


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_equal_to_a_plain_computation(scored_model, version: str, backend: str):
    model = scored_model(version, backend)
    pairs = random_pairs(model)
    check(model, pairs)
    # Some pairs are greedy and some are not, or the comparison would say little.
    assert len({scores.greedy for scores in LikelihoodEngine(model).score(pairs)}) == 2


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("tokens_at_once", [1, 7, 64])
def test_calls_of_any_size_give_the_same(scored_model, backend: str, tokens_at_once: int):
    model = scored_model("7", backend)
    check(model, random_pairs(model), tokens_at_once=tokens_at_once)


def test_few_logits_at_a_time(scored_model, monkeypatch):
    monkeypatch.setattr(pool, "_LOGITS_AT_ONCE", 3 * VOCABULARY)
    check(scored_model("7", "torch"), random_pairs(scored_model("7", "torch")))


def test_a_shared_context_is_read_once(scored_model):
    context = tuple(range(50))
    pairs = [Pair(context, (choice, 5, 6, 7)) for choice in (1, 2, 3, 4)]
    engine = check(scored_model(), pairs)
    # The last token of a choice is predicted and never read.
    assert engine.tokens_read == 50 + 4 * 3
    engine = check(scored_model(), [Pair(context, (choice,)) for choice in (1, 2, 3, 4)])
    assert engine.tokens_read == 50


def test_a_text_of_any_length_needs_no_windows(scored_model):
    ids = tuple(np.random.default_rng(1).integers(0, VOCABULARY, 3000).tolist())
    engine = check(scored_model(), [Pair((0,), ids)], tokens_at_once=256)
    assert engine.tokens_read == 3000


def test_reports_and_finished_pairs_come_as_they_are_done(scored_model):
    pairs = random_pairs(scored_model())
    reports, finished = [], {}
    engine = LikelihoodEngine(scored_model(), tokens_at_once=30)
    scores = engine.score(
        pairs, report=lambda *each: reports.append(each), finished=lambda i, s: finished.update({i: s.total})
    )
    done, totals = zip(*reports, strict=True)
    assert len(reports) > 3
    assert all(a < b for a, b in pairwise(done))
    assert set(totals) == {done[-1]} == {engine.tokens_read}
    assert finished == {i: each.total for i, each in enumerate(scores)}
    assert engine.score([]) == []


@pytest.mark.parametrize(
    ("pair", "problem"),
    [
        (Pair((), (1,)), "pair 1: the context has no tokens"),
        (Pair((1,), ()), "pair 1: the continuation has no tokens"),
        (Pair((1,), (VOCABULARY,)), "pair 1: token 203 is outside of the vocabulary"),
        (Pair((-1,), (1,)), "pair 1: token -1 is outside"),
    ],
)
def test_what_cannot_be_scored(scored_model, pair: Pair, problem: str):
    with pytest.raises(ConfigError, match=problem):
        LikelihoodEngine(scored_model()).score([Pair((1,), (2,)), pair])


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_no_number_is_no_score(random_model, backend: str):
    config = sized("7", vocab_size=VOCABULARY, width=64, num_layers=1)
    tensors = to_tensors(random_model(config))
    tensors["head.weight"] = np.full_like(tensors["head.weight"], np.inf)
    checkpoint = Checkpoint(config=config, tensors=tensors)
    model = LanguageModel(open_backend(checkpoint, name=backend, device="cpu", threads=1))
    with pytest.raises(StateError, match="NaN or infinity"):
        LikelihoodEngine(model).score([Pair((1, 2), (3,))])


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_the_tree_spells_every_sequence_once(sequences: list[list[int]]):
    spelled: dict[int, list[int]] = {i: [] for i in range(len(sequences))}
    read = 0
    nodes = prefix_tree.build([np.array(each) for each in sequences])
    while nodes:
        node = nodes.pop()
        assert len(node.tokens)
        read += len(node.tokens)
        for index in node.sequences:
            assert len(spelled[index]) in (node.begin, len(sequences[index]))
            if len(sequences[index]) > node.begin:
                spelled[index] += node.tokens.tolist()
        nodes += node.children
    assert [spelled[i] for i in range(len(sequences))] == sequences
    assert read <= sum(map(len, sequences))
