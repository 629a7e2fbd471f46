"""Generated tasks: pure functions, and answers that a plain computation gives too."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest

from rookery.evaluate.tasks import TASKS, TEST_SEED, asked, batch
from rookery.evaluate.tasks.copying import NOW
from rookery.evaluate.tasks.groups import generators, multiplication_table
from rookery.evaluate.tasks.passkey import DIGITS, KEY, KEY_LENGTH, QUERY, WORDS
from rookery.evaluate.tasks.recall import FILLER, KEYS, VALUES
from rookery.train.data import IGNORED

NAMES = list(TASKS)
GROUPS = ("z60", "a5", "s5")


def examples(name: str, count: int = 20, size: int | None = None, seed: int = 3):
    task = TASKS[name]
    sizes = [size] if size else task.test_sizes
    return [(s, task.example(seed, i, s, None)) for s in sizes for i in range(count)]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_a_function_of_its_arguments(name):
    task = TASKS[name]
    size = task.test_sizes[2]
    first = task.example(5, 7, size, None)
    again = task.example(5, 7, size, None)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == np.int64
    for other in (task.example(5, 8, size, None), task.example(6, 7, size, None)):
        assert not np.array_equal(first.tokens, other.tokens)


@pytest.mark.parametrize("name", NAMES)
def test_examples_fit_the_vocabulary_and_have_one_length(name):
    task = TASKS[name]
    for size in (*task.train_sizes, *task.test_sizes):
        found = [task.example(1, index, size, None) for index in range(10)]
        assert len({len(example.tokens) for example in found}) == 1
        for tokens, targets in found:
            assert tokens.shape == targets.shape
            assert tokens.min() >= 0
            assert tokens.max() < task.vocab_size
            scored = targets[asked(targets)]
            assert len(scored) > 0
            assert scored.min() >= 0
            assert scored.max() < task.vocab_size


@pytest.mark.parametrize("name", NAMES)
def test_tasks_are_tested_beyond_what_they_are_learnt_from(name):
    task = TASKS[name]
    assert task.name == name
    assert max(task.test_sizes) >= 4 * max(task.train_sizes)
    assert list(task.test_sizes) == sorted(task.test_sizes)
    assert 0 < task.chance <= 0.5
    assert task.measure in ("answers", "last", "whole")
    assert task.known


def test_batches_are_examples_one_after_the_other():
    task = TASKS["copy"]
    tokens, targets = batch(task, seed=2, first=10, count=3, size=8)
    for row in range(3):
        example = task.example(2, 10 + row, 8, None)
        np.testing.assert_array_equal(tokens[row], example.tokens)
        np.testing.assert_array_equal(targets[row], example.targets)


def test_recall_answers_with_the_value_of_the_key():
    for size, (tokens, targets) in examples("mqar"):
        pairs, rest = tokens[: 2 * size], tokens[2 * size :]
        value_of = dict(zip(pairs[::2].tolist(), pairs[1::2].tolist(), strict=True))
        assert len(value_of) == size
        assert set(value_of) <= set(KEYS)
        assert set(value_of.values()) <= set(VALUES)
        assert (targets[: 2 * size] == IGNORED).all()
        after = targets[2 * size :]
        queries = [(int(key), value) for key, value in zip(rest, after, strict=True) if key != FILLER]
        assert {key for key, _ in queries} == set(value_of)
        assert len(queries) == size
        assert all(value_of[key] == value for key, value in queries)
        assert (after[rest == FILLER] == IGNORED).all()


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_passkey_lies_at_its_depth_and_is_asked_for_at_the_end(depth):
    task = TASKS["passkey"]
    for index in range(20):
        tokens, targets = task.example(TEST_SEED, index, 64, depth)
        [at] = np.flatnonzero(tokens == KEY)
        [query] = np.flatnonzero(tokens == QUERY)
        digits = tokens[at + 1 : at + 1 + KEY_LENGTH]
        assert set(digits.tolist()) <= set(DIGITS)
        words = np.delete(tokens[:query], np.arange(at, at + 1 + KEY_LENGTH))
        assert set(words.tolist()) <= set(WORDS)
        assert at == round(depth * len(words))
        assert query == 64 - KEY_LENGTH
        np.testing.assert_array_equal(targets[query:], digits)
        np.testing.assert_array_equal(tokens[query + 1 :], digits[:-1])
        assert (targets[:query] == IGNORED).all()


def test_in_training_the_passkey_lies_anywhere():
    task = TASKS["passkey"]
    places = {int(np.flatnonzero(task.example(0, i, 64, None).tokens == KEY)[0]) for i in range(300)}
    assert min(places) < 5
    assert max(places) > 50
    assert len(places) > 40


@pytest.mark.parametrize(("name", "order"), [("copy", 1), ("reverse", -1)])
def test_copies_and_reversals(name, order):
    for size, (tokens, targets) in examples(name):
        given = tokens[:size].tolist()
        assert tokens[size] == NOW
        assert targets[size:].tolist() == given[::order]
        assert tokens[size + 1 :].tolist() == given[::order][:-1]
        assert (targets[:size] == IGNORED).all()


def test_parity_counts_ones():
    for _, (tokens, targets) in examples("parity"):
        ones = 0
        for bit, answer in zip(tokens.tolist(), targets.tolist(), strict=True):
            ones += bit
            assert answer == ones % 2


@pytest.mark.parametrize("name", GROUPS)
def test_multiplication_tables_are_groups(name):
    table = multiplication_table(name)
    n = len(table)
    everything = np.arange(n)
    # Closed, and every row and column is a permutation; 0 is neutral; every element has an inverse;
    # associative.
    assert {tuple(sorted(row)) for row in table} == {tuple(everything)}
    assert {tuple(sorted(column)) for column in table.T} == {tuple(everything)}
    np.testing.assert_array_equal(table[0], everything)
    np.testing.assert_array_equal(table[:, 0], everything)
    assert ((table == 0).sum(1) == 1).all()
    # [i, j, k]: (i j) k against i (j k)
    np.testing.assert_array_equal(table[table], table[everything[:, None, None], table[None]])


def test_the_groups_are_what_their_names_say():
    z60, a5, s5 = map(multiplication_table, GROUPS)
    assert (len(z60), len(a5), len(s5)) == (60, 60, 120)
    np.testing.assert_array_equal(z60, z60.T)
    assert not np.array_equal(a5, a5.T)
    # Orders of elements tell these groups from others of their size: A5 has 1, 15, 20, 24 of order 1, 2, 3,
    # 5.
    assert _orders(a5) == {1: 1, 2: 15, 3: 20, 5: 24}
    assert _orders(s5) == {1: 1, 2: 25, 3: 20, 4: 30, 5: 24, 6: 20}
    assert _orders(z60)[60] == 16


def _orders(table: np.ndarray) -> dict[int, int]:
    found: dict[int, int] = {}
    for element in range(len(table)):
        power, order = element, 1
        while power:
            power, order = int(table[power, element]), order + 1
        found[order] = found.get(order, 0) + 1
    return found


@pytest.mark.parametrize("name", GROUPS)
def test_generators_reach_every_element(name):
    table, letters = multiplication_table(name), generators(name)
    reached, edge = {0}, {0}
    while edge:
        edge = {int(table[i, j]) for i, j in product(edge, letters)} - reached
        reached |= edge
    assert len(reached) == len(table)
    assert len(set(letters.tolist())) == 4


@pytest.mark.parametrize("name", ["a5", "s5"])
def test_products_of_permutations_are_recomputed_by_applying_them(name):
    """The table is not used here: every word is applied to five things, letter by letter."""
    elements = list(permutations(range(5)))
    if name == "a5":
        elements = [p for p in elements if sum(p[i] > p[j] for i in range(5) for j in range(i, 5)) % 2 == 0]
    letters = generators(name)
    for _, (tokens, targets) in examples(name, count=5):
        things = list(range(5))
        for token, answer in zip(tokens.tolist(), targets.tolist(), strict=True):
            letter = elements[letters[token]]
            things = [letter[i] for i in things]
            assert elements.index(tuple(things)) == answer


def test_sums_of_z60_are_recomputed_by_adding():
    letters = generators("z60")
    for _, (tokens, targets) in examples("z60", count=5):
        np.testing.assert_array_equal(np.cumsum(letters[tokens]) % 60, targets)


def test_a_task_can_be_made_smaller():
    """Tests and users may replace sizes: nothing else depends on them."""
    task = replace(TASKS["parity"], test_sizes=(4,), test_examples=3)
    assert batch(task, seed=0, first=0, count=task.test_examples, size=4)[0].shape == (3, 4)
