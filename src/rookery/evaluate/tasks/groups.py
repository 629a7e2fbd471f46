"""Word problems of groups: after each of some generators, the product of all so far.

Z60 (addition modulo 60) is commutative, A5 (the even permutations of five things) is the smallest group that
is not solvable, and S5 (all permutations of five) contains it. A product of A5 or S5 is as hard as anything
that a finite automaton can follow (NC1-complete, Barrington 1989); constant-depth transformers and diagonal
linear recurrences cannot, for all lengths.

Words are made of four generators of the group and not of all its elements: that is as hard to follow, and
does not ask for thousands of products to be learnt by heart before there is anything to follow.
"""

from __future__ import annotations

from functools import lru_cache, partial
from itertools import permutations

import numpy as np

from rookery.evaluate.tasks.task import Example, Known, Task, generator

__all__ = ["A5", "S5", "Z60", "generators", "multiplication_table"]

_ORDERS = {"z60": 60, "a5": 60, "s5": 120}

# Of Z60, steps of 1, -1, 12 and 20; of A5, a cycle of five, a cycle of three, and their inverses; of S5, a
# cycle of five, its inverse, and two transpositions.
_GENERATORS = {
    "z60": (1, 59, 12, 20),
    "a5": ((1, 2, 3, 4, 0), (4, 0, 1, 2, 3), (1, 2, 0, 3, 4), (2, 0, 1, 3, 4)),
    "s5": ((1, 2, 3, 4, 0), (4, 0, 1, 2, 3), (1, 0, 2, 3, 4), (0, 2, 1, 3, 4)),
}


@lru_cache
def multiplication_table(name: str) -> np.ndarray:
    """``table[i, j]``: element i, then element j, [n, n] int64. Element 0 is the neutral one.

    Permutations are numbered in lexicographic order.
    """
    if name == "z60":
        return np.add.outer(np.arange(60), np.arange(60)) % 60
    elements = _permutations(name)
    number = {p: i for i, p in enumerate(elements)}
    return np.array([[number[tuple(q[i] for i in p)] for q in elements] for p in elements])


@lru_cache
def generators(name: str) -> np.ndarray:
    """The elements that words are made of, [4] int64; token i of the task is the i-th of them."""
    chosen = _GENERATORS[name]
    if name == "z60":
        return np.array(chosen)
    elements = _permutations(name)
    return np.array([elements.index(each) for each in chosen])  # pyright: ignore[reportArgumentType]


def _permutations(name: str) -> list[tuple[int, ...]]:
    return [p for p in permutations(range(5)) if name != "a5" or _is_even(p)]


def _is_even(permutation: tuple[int, ...]) -> bool:
    n = len(permutation)
    return sum(permutation[i] > permutation[j] for i in range(n) for j in range(i + 1, n)) % 2 == 0


def _example(name: str, seed: int, index: int, size: int, depth: float | None) -> Example:
    table, letters = multiplication_table(name), generators(name)
    tokens = generator(name, seed, index, size).integers(0, len(letters), size)
    products, product = np.empty_like(tokens), 0
    for position, element in enumerate(letters[tokens]):
        product = products[position] = table[product, element]
    return Example(tokens, products)


_KNOWN = (
    Known(
        "RWKV-7 follows A5, A4 x Z5 and Z60 with fewer layers than a transformer, Mamba or S4 (layers for "
        "over 95 %).",
        "Peng et al. 2025, arXiv:2503.14456",
    ),
    Known(
        "Transformers and diagonal state-space models need more layers for longer words of A5; one layer "
        "of a recurrent network is enough.",
        "Merrill et al. 2024, The Illusion of State, arXiv:2404.08819",
    ),
)


def _task(name: str, title: str, what: str) -> Task:
    order = _ORDERS[name]
    return Task(
        name=name,
        title=title,
        summary=f"Random words of four generators of {what}; after each letter, the product of all so far, "
        f"one of {order}. The accuracy is that of the last letter.",
        vocab_size=order,
        example=partial(_example, name),
        size_name="letters",
        train_sizes=(16,),
        test_sizes=(2, 4, 8, 16, 32, 64),
        chance=1 / order,
        measure="last",
        weight=2.0,
        known=_KNOWN,
    )


Z60 = _task("z60", "Word problem of Z60", "Z60, the numbers under addition modulo 60")
A5 = _task("a5", "Word problem of A5", "A5, the even permutations of five things")
S5 = _task("s5", "Word problem of S5", "S5, the permutations of five things")
