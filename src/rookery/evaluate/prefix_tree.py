"""Sequences of tokens as a tree in which what they begin with alike stands once.

    a b c d e f        a b c d ── e f
    a b c d x y   ->          └── x y

The four choices of a question share its context; the prompts of a document share the document. A model reads
each node once, and goes on from its state into each of its children.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

__all__ = ["Node", "build"]

# Tokens that a node must save each of its children, for it to be worth a call of its own and a copied state.
_WORTH_SHARING = 4


@dataclass
class Node:
    """Tokens that follow those of the parent, for some of the sequences."""

    tokens: np.ndarray
    """[T], at least one."""

    begin: int
    """Tokens of the parents together: the place of the first one in the sequences."""

    sequences: list[int]
    """Which sequences pass through, as they were numbered in ``build``."""

    children: list[Node] = field(default_factory=list)


def build(sequences: Sequence[np.ndarray]) -> list[Node]:
    """The roots of the tree; every sequence [T] has at least one token.

    Nodes are split only where at least four tokens are saved, so that sequences that happen to begin with the
    same word stay whole.
    """
    # Of equal width and the highest byte first, ids sort as their bytes do.
    keys = [np.asarray(tokens, ">u4").tobytes() for tokens in sequences]
    order = sorted(range(len(sequences)), key=keys.__getitem__)
    alike = [0] + [_common(sequences[a], sequences[b]) for a, b in pairwise(order)]
    roots: list[Node] = []
    work: list[tuple[int, int, int, list[Node]]] = [(0, len(order), 0, roots)]
    while work:
        low, high, depth, siblings = work.pop()
        for first, end in _runs(alike, low, high, depth):
            members = order[first:end]
            shared = len(sequences[members[0]]) if end - first == 1 else min(alike[first + 1 : end])
            if shared == depth:  # the sequence ends where the parent does
                continue
            node = Node(np.asarray(sequences[members[0]][depth:shared], np.int64), depth, members)
            siblings.append(node)
            if end - first > 1:
                # Sorted, those that end here come first.
                rest = first + sum(len(sequences[member]) == shared for member in members)
                work.append((rest, end, shared, node.children))
    return roots


def _runs(alike: list[int], low: int, high: int, depth: int) -> list[tuple[int, int]]:
    """Ranges of neighbours that share enough beyond ``depth``."""
    bounds = [low] + [i for i in range(low + 1, high) if alike[i] - depth < _WORTH_SHARING] + [high]
    return [(a, b) for a, b in pairwise(bounds) if a < b]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
