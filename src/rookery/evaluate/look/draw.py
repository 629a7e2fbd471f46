"""Figures of what was seen inside a model."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from rookery.evaluate import style
from rookery.evaluate.look.measure import Inside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["binned", "draw_decay", "draw_influence", "draw_learning_rate", "draw_state", "draw_surprise"]

# Half-lives are shown up to here; what forgets more slowly is in the last bin.
_SHORTEST, _LONGEST = 0.03, 1e6
_LEAST_BITS = 1e-12


def draw_decay(inside: Inside) -> Figure:
    """The half-lives of each layer's channels: one curve for a layer, the lowest layer below."""
    half_lives = inside.half_lives
    L = len(half_lives)
    figure, axes = style.new_figure(height=1.3 + 0.42 * min(L, 32) + 0.04 * max(L - 32, 0))
    axis: Axes = axes[0, 0]
    span = half_lives[np.isfinite(half_lives)]
    low = max(_SHORTEST, float(span.min()) / 1.6) if len(span) else 1.0
    high = min(_LONGEST, max(float(span.max()) * 1.6, 10 * low)) if len(span) else 10.0
    edges = np.geomspace(low, high, 97)
    centres = np.sqrt(edges[1:] * edges[:-1])
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / 2.0) ** 2)
    for layer, color in enumerate(style.shades(L)):
        counts, _ = np.histogram(np.clip(half_lives[layer], low, high), edges)
        # What lies beyond the ends is mirrored back, so that smoothing moves nothing out of the plot.
        density = np.convolve(np.pad(counts, 6, mode="symmetric"), kernel, mode="valid")
        height = layer + 0.92 * density / max(density.max(), 1e-12)
        axis.fill_between(
            centres, layer, height, color=color, alpha=0.35, linewidth=0, zorder=2 * (L - layer)
        )
        axis.plot(centres, height, color=color, linewidth=1.3, zorder=2 * (L - layer) + 1)
        middle = np.median(half_lives[layer])
        axis.plot(
            [np.clip(middle, low, high)] * 2,
            [layer, layer + 0.3],
            color=style.INK,
            linewidth=1.4,
            zorder=2 * (L - layer) + 1,
        )
    T = len(inside.tokens)
    if low < T < high:
        axis.axvline(T, color=style.MUTED, linestyle=(0, (3, 3)), linewidth=1)
        axis.annotate(
            "this text",
            (T, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, -3),
            textcoords="offset points",
            va="top",
            fontsize=9,
            color=style.MUTED,
        )
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    _plain_ticks(axis.xaxis, (1.0,) if high / low > 1000 else (1.0, 2.0, 5.0))
    axis.set_ylim(0, L + 0.05)
    shown = range(0, L, max(1, -(-L // 16)))
    axis.set_yticks(list(shown), [str(layer) for layer in shown])
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("half-life (tokens)")
    axis.set_ylabel("layer")
    return figure


def draw_state(inside: Inside) -> Figure:
    """Norm, and where it has one effective rank, of the state over the text: a line for each layer."""
    ranked = inside.state_rank is not None
    figure, axes = style.new_figure(1, 1 + ranked, width=9.0, height=3.6)
    _over_text(axes[0, 0], inside, inside.state_norm)
    _plain_log(axes[0, 0])
    axes[0, 0].set_ylabel("norm of a head's state" if ranked else "norm of the state")
    if inside.state_rank is not None:
        _over_text(axes[0, 1], inside, inside.state_rank)
        axes[0, 1].set_ylim(bottom=0)
        axes[0, 1].set_ylabel(f"effective rank (of {inside.config.head_size})")
    style.legend(axes[0, -1], outside=True, title="layer")
    return figure


def draw_learning_rate(inside: Inside) -> Figure:
    """RWKV-7's in-context learning rate: mean and spread over the text, by layer and head."""
    rates = inside.learning_rate
    assert rates is not None
    _, L, H = rates.shape
    figure, axes = style.new_figure(1, 2, width=9.0, height=1.5 + min(0.36 * L, 6.0))
    mean, spread = rates.mean(0), rates.std(0)
    top = max(float(spread.max()), 1e-6)
    panels = ((mean, 1.0, "mean over the text", 0), (spread, top, "spread over the text (sd)", 1))
    for values, highest, title, number in panels:
        axis: Axes = axes[0, number]
        shades = style.color_map(style.SERIES[0] if number == 0 else style.SERIES[1])
        picture = axis.imshow(values, cmap=shades, vmin=0, vmax=highest, aspect="auto", origin="lower")
        style.title(axis, title)
        axis.grid(visible=False)
        axis.set_xlabel("head")
        axis.set_ylabel("layer")
        for ticks, count in ((axis.set_xticks, H), (axis.set_yticks, L)):
            ticks(list(range(0, count, max(1, -(-count // 12)))))
        if L * H <= 96:
            for layer, head in np.ndindex(L, H):
                axis.text(
                    head,
                    layer,
                    f"{values[layer, head]:.2g}",
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color=style.INK,
                )
        with style.context():
            bar = figure.colorbar(picture, ax=axis, pad=0.02)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def draw_influence(inside: Inside) -> Figure:
    """The median divergence of later predictions by distance, with quartiles."""
    figure, axes = style.new_figure(height=3.6)
    axis: Axes = axes[0, 0]
    distance, quartiles = binned(inside.influence.divergence)
    # A logarithmic axis has no zero; what is below this is the rounding of the model itself.
    lower, middle, upper = np.maximum(quartiles, _LEAST_BITS)
    color = style.mark(f"rwkv{inside.config.version[0]}").color
    axis.fill_between(distance, lower, upper, color=color, alpha=0.2, linewidth=0, label="middle half")
    axis.plot(distance, middle, color=color, marker="o", label="median")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axis.set_xlabel("tokens read since the change, itself included")
    axis.set_ylabel("KL divergence (bits)")
    style.legend(axis, loc="upper right")
    return figure


def binned(divergence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quartiles by distance, neighbouring distances taken together: four bins for an octave.

    Args:
        divergence: [M, E].

    Returns:
        Distances [G], the geometric mean of each bin, counted from 1; and [3, G]: quartiles over positions of
        the mean over the bin.
    """
    E = divergence.shape[1]
    edges = np.unique(np.geomspace(1, E + 1, 2 + int(4 * np.log2(E + 1))).round().astype(int))
    distances, quartiles = [], []
    for first, beyond in itertools.pairwise(edges.tolist()):
        distances.append(np.sqrt(first * (beyond - 1)))
        means = divergence[:, first - 1 : beyond - 1].mean(1)
        quartiles.append(np.quantile(means, (0.25, 0.5, 0.75)))
    return np.array(distances), np.array(quartiles).T


def draw_surprise(inside: Inside) -> Figure:
    """Surprise along the text, smoothed, and what the model expected it to be."""
    figure, axes = style.new_figure(height=3.0)
    axis: Axes = axes[0, 0]
    known = ~np.isnan(inside.surprise.bits)
    place = np.arange(1, len(inside.tokens) + 1)[known]
    window = max(1, len(place) // 60)
    weights = np.ones(window) / window
    for values, color, label in (
        (inside.surprise.bits[known], style.SERIES[1], "surprise"),
        (inside.surprise.entropy[known], style.SERIES[0], "expected surprise (entropy)"),
    ):
        smooth = np.convolve(values, weights, mode="valid")
        # The mean of a window stands at the window's middle.
        axis.plot(place[: len(smooth)] + (window - 1) / 2, smooth, color=color, label=label)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("token" + (f" (means of {window} neighbours)" if window > 1 else ""))
    axis.set_ylabel("bits")
    style.legend(axis, loc="lower right", ncols=2)
    return figure


def _plain_log(axis: Axes) -> None:
    """A logarithmic y axis whose ticks are plain numbers, also where it has less than a decade."""
    axis.set_yscale("log")
    _plain_ticks(axis.yaxis, (1.0, 2.0, 5.0))


def _plain_ticks(axis: Axis, steps: tuple[float, ...]) -> None:
    """Plain numbers at these multiples of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
    axis.set_minor_formatter(NullFormatter())


def _over_text(axis: Axes, inside: Inside, values: np.ndarray) -> None:
    """A line for each layer: the mean over its heads."""
    L = values.shape[1]
    labelled = set(range(0, L, max(1, -(-L // 12)))) | {L - 1}
    marker = "o" if len(inside.read) == 1 else None
    for layer, color in enumerate(style.shades(L)):
        label = str(layer) if layer in labelled else None
        axis.plot(
            inside.read,
            values[:, layer].mean(-1),
            color=color,
            label=label,
            linewidth=1.5,
            marker=marker,
        )
    axis.set_xlabel("tokens read")
