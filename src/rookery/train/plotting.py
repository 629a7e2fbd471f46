"""The picture of a run: its losses over the tokens it was trained on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from rookery.files import atomic_write
from rookery.train.metrics import Metrics

__all__ = ["plot_loss", "smooth"]

_TRAINING, _VALIDATION, _INK, _GRID = "#4c78a8", "#e4572e", "#333333", "#d9d9d9"


def plot_loss(rows: Sequence[Metrics], path: str | Path, *, title: str | None = None) -> None:
    """Draw the training loss and the validation loss over tokens, in nats per token, as a PNG.

    Where bits per byte are known, a second scale on the right has them.
    """
    # Agg draws without a display; the object interface leaves matplotlib's global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, ScalarFormatter

    steps = [(row.tokens, row.loss) for row in rows if row.loss is not None]
    validations = [(row.tokens, row.valid_loss) for row in rows if row.valid_loss is not None]
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if steps:
        tokens, losses = np.array(steps).T
        axes.plot(tokens, losses, color=_TRAINING, alpha=0.25, linewidth=0.8)
        axes.plot(tokens, smooth(losses), color=_TRAINING, linewidth=2, label="training (smoothed)")
    if validations:
        tokens, losses = np.array(validations).T
        axes.plot(tokens, losses, "o-", color=_VALIDATION, linewidth=2, markersize=4, label="validation")
        axes.annotate(
            f"{losses[-1]:.3f}",
            (tokens[-1], losses[-1]),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=11,
            fontweight="bold",
            color=_VALIDATION,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("tokens", fontsize=12, color=_INK)
    axes.set_ylabel("loss (nats per token)", fontsize=12, color=_INK)
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.grid(visible=True, color=_GRID, linewidth=0.8)
    axes.tick_params(labelsize=11, colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, fontsize=13, color=_INK, loc="left")
    if steps or validations:
        # Losses fall, so this corner is free; a search for the best one is slow, and warns that it is.
        axes.legend(frameon=False, fontsize=11, loc="upper right")
    ratio = _bits_per_nat(rows)
    if ratio is not None:
        scales = (partial(np.multiply, ratio), partial(np.multiply, 1 / ratio))
        right = axes.secondary_yaxis("right", functions=scales)
        right.set_ylabel("bits per byte", fontsize=12, color=_INK)
        right.tick_params(labelsize=11, colors=_INK)
        right.spines["right"].set_visible(False)
    picture = io.BytesIO()
    canvas.print_png(picture)
    with atomic_write(path) as file:
        file.write(picture.getvalue())


def smooth(losses: np.ndarray) -> np.ndarray:
    """The mean of the losses around each step s: of about s / 20 before it, at most 100, and as many after.

    So the fast fall at the beginning is not flattened. At the end there are fewer after a step.
    """
    n = len(losses)
    index = np.arange(n)
    half = np.minimum.reduce([np.full(n, 100), index // 20 + 1, index])
    first, last = index - half, np.minimum(index + half, n - 1)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    return (sums[last + 1] - sums[first]) / (last + 1 - first)


def _bits_per_nat(rows: Sequence[Metrics]) -> float | None:
    for row in reversed(rows):
        if row.valid_loss and row.bits_per_byte:
            return row.bits_per_byte / row.valid_loss
    return None
