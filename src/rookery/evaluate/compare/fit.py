"""The exponent of cost against length.

cost = c length^e        e and log c by least squares over the logarithms
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["SPAN", "Exponent", "fit_exponent"]

SPAN = 4
"""The longest lengths are used, down to this part of the longest."""


@dataclass(frozen=True)
class Exponent:
    """How cost grows with length."""

    value: float
    """e"""

    first: int
    """The shortest length that was used."""

    last: int
    """The longest."""

    points: int
    """How many lengths there were."""


def fit_exponent(lengths: Sequence[int], costs: Sequence[float], *, span: float = SPAN) -> Exponent | None:
    """Fit the exponent where length tells most: at the longest lengths, down to 1/span of the longest.

    At short lengths the cost is that of a call and of reading the weights, whatever the length; there the
    slope says nothing of the mixing.

    Args:
        lengths: growing.
        costs: of each, positive.

    Returns:
        The exponent, or None where there are fewer than two lengths in the range.
    """
    kept = [(n, cost) for n, cost in zip(lengths, costs, strict=True) if n * span >= lengths[-1]]
    if len(kept) < 2:
        return None
    x, y = np.log(np.array(kept, dtype=float)).T
    slope = float(np.polyfit(x, y, 1)[0])
    return Exponent(slope, kept[0][0], kept[-1][0], len(kept))
