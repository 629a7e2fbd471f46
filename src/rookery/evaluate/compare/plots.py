"""The plots of a comparison. Each takes the findings and gives a figure in house style."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rookery.evaluate import style
from rookery.evaluate.compare.findings import Findings, mean
from rookery.evaluate.tasks import TASKS, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["context_plot", "generation_plot", "loss_plot", "passkey_plot", "task_plot", "training_plot"]

# Inches of every figure: on a page all are as wide as the text, so that letters are of one size.
WIDTH = 10.5

Points = Iterable[tuple[float, float]]


def loss_plot(findings: Findings, data: str) -> Figure:
    """Held-out loss of one text by tokens and by seconds."""
    figure, [[by_tokens, by_seconds]] = style.new_figure(1, 2, width=WIDTH, height=4.6, sharey=True)
    for mixer, pairs in findings.done("text", data).items():
        tokens, seconds = [], []
        for _, result in pairs:
            each = result["tokens"] / len(result["losses"])
            tokens += [(point["step"] * each, point["loss"]) for point in result["validations"]]
            seconds.append([(point["seconds"], point["loss"]) for point in result["validations"]])
        _line(by_tokens, mixer, _averaged(tokens))
        # Seeds take different seconds to the same step: both are averaged, step by step.
        _line(by_seconds, mixer, [_center(at) for at in zip(*seconds, strict=False)])
    for axes, what in ((by_tokens, "tokens"), (by_seconds, "seconds")):
        _log(axes, "x", _short)
        _finish(axes, f"Loss by {what} of training", what)
    by_tokens.set_ylabel("held-out loss (nats per token)")
    _shared_legend(figure, by_tokens)
    return figure


def context_plot(findings: Findings, data: str) -> Figure:
    """Held-out loss of one text by position and by context."""
    figure, [[by_position, by_context]] = style.new_figure(1, 2, width=WIDTH, height=4.6)
    for mixer, pairs in findings.done("text", data).items():
        positions = [
            (math.sqrt((point["first"] + 1) * point["last"]), point["loss"])
            for _, result in pairs
            for point in result["positions"]
        ]
        _line(by_position, mixer, _averaged(positions), markersize=3)
        contexts = [(point["context"], point["loss"]) for _, result in pairs for point in result["contexts"]]
        _line(by_context, mixer, _averaged(contexts))
    for axes, what in ((by_position, "position in the context"), (by_context, "context")):
        _log(axes, "x", _short)
        axes.axvline(findings.config.context, color=style.MUTED, linewidth=1, linestyle=(0, (3, 3)))
        axes.annotate(
            "trained to here",
            (findings.config.context, 0.99),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            color=style.MUTED,
        )
        _finish(axes, f"Loss by {what}", f"{what} (tokens)")
    by_context.set_xticks([int(context) for context in findings.config.contexts])
    by_position.set_ylabel("held-out loss (nats per token)")
    _shared_legend(figure, by_position)
    return figure


def training_plot(findings: Findings) -> Figure:
    """Speed and memory of training by length."""
    figure, [[speed, memory]] = style.new_figure(1, 2, width=WIDTH, height=4.6)
    for mixer, pairs in findings.done("training").items():
        rows = [result for _, result in pairs]
        _line(speed, mixer, [(row["length"], row["tokens_per_second"]) for row in rows])
        _line(memory, mixer, [(row["length"], row["peak_bytes"]) for row in rows if row["peak_bytes"]])
    for axes, name, unit, shown in (
        (speed, "Training speed", "tokens/s", _short),
        (memory, "Peak memory of training", "bytes", _bytes),
    ):
        _log(axes, "x", _short, base=2)
        _log(axes, "y", shown, base=2 if shown is _bytes else 10)
        _finish(axes, f"{name} by length", "tokens of the row")
        axes.set_ylabel(unit if unit != "bytes" else "")
    _shared_legend(figure, speed)
    return figure


def generation_plot(findings: Findings) -> Figure:
    """Time, state and memory of generation by the number of tokens before."""
    figure, [panels] = style.new_figure(1, 3, width=WIDTH, height=3.9)
    columns: Sequence[tuple[str, str, Callable[[float, Any], str]]] = (
        ("Time of one more token", "seconds", _milliseconds),
        ("State", "state_bytes", _bytes),
        ("Memory", "memory_bytes", _bytes),
    )
    for axes, (name, field, shown) in zip(panels, columns, strict=True):
        for mixer in findings.done("generation"):
            points = findings.points(mixer)
            _line(axes, mixer, [(p["after"], p[field]) for p in points if p[field] and p[field] > 0])
        _log(axes, "x", _short, base=2)
        _log(axes, "y", shown, base=10 if field == "seconds" else 2)
        _finish(axes, name, "tokens before")
    _shared_legend(figure, panels[0])
    return figure


def task_plot(findings: Findings, names: Sequence[str]) -> Figure:
    """Accuracy by size, one panel for each task."""
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure, panels = style.new_figure(rows, columns, width=WIDTH, height=3.1 * rows + 0.3, sharey=True)
    for axes, name in zip(panels.flat, names, strict=False):
        task = TASKS[name]
        for mixer, pairs in findings.done("task", name).items():
            points = [(s["size"], s[task.measure]) for _, result in pairs for s in result["scores"]]
            _line(axes, mixer, _averaged(points))
        _log(axes, "x", _short, base=2)
        axes.set_xticks(task.test_sizes)
        axes.axvspan(
            min(task.test_sizes) * 0.9, max(task.train_sizes), color=style.GRID, alpha=0.45, linewidth=0
        )
        axes.axhline(task.chance, color=style.MUTED, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        _finish(axes, task.title, task.size_name)
    for axes in list(panels.flat)[len(names) :]:
        axes.set_visible(False)
    _shared_legend(figure, panels.flat[0])
    return figure


def passkey_plot(findings: Findings, name: str) -> Figure:
    """Accuracy by length and depth, a heat map for each mixer."""
    task = TASKS[name]
    found = findings.done("task", name)
    columns = min(len(found), 5)
    rows = -(-len(found) // columns)
    figure, panels = style.new_figure(
        rows, columns, width=WIDTH, height=2.1 * rows + 0.5, sharex=True, sharey=True
    )
    image = None
    for number, (axes, (mixer, pairs)) in enumerate(zip(panels.flat, found.items(), strict=False)):
        grid = _grid(task, [result for _, result in pairs])
        image = axes.imshow(grid, vmin=0, vmax=1, aspect="auto", cmap=style.color_map(), origin="upper")
        axes.grid(visible=False)
        style.title(axes, style.mark(mixer).label, fontsize=10)
        axes.set_xticks(range(len(task.test_sizes)), [_short(size) for size in task.test_sizes])
        axes.tick_params(labelsize=8)
        axes.set_yticks(range(len(task.depths)), [f"{depth:g}" for depth in task.depths])
        # What is on the right of this line is longer than anything learnt from.
        edge = sum(size <= max(task.train_sizes) for size in task.test_sizes) - 0.5
        axes.axvline(edge, color=style.MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for (i, j), value in np.ndenumerate(grid):
            if np.isfinite(value):
                # On a light cell ink, on a full one paper.
                color = style.PAPER if value > 0.6 else style.INK
                axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7.5, color=color)
        if number % columns == 0:
            axes.set_ylabel("depth")
        if number >= len(found) - columns:
            axes.set_xlabel(task.size_name)
            axes.tick_params(labelbottom=True)
    for axes in list(panels.flat)[len(found) :]:
        axes.set_visible(False)
    if image is not None:
        bar = figure.colorbar(image, ax=list(panels.flat), shrink=0.8, aspect=30, pad=0.015)
        bar.ax.tick_params(labelsize=9)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        bar.outline.set_visible(False)
    return figure


def _grid(task: Task, results: Sequence[dict[str, Any]]) -> np.ndarray:
    grid = np.full((len(task.depths), len(task.test_sizes)), np.nan)
    found = defaultdict(list)
    for result in results:
        for score in result["scores"]:
            found[score["depth"], score["size"]].append(score[task.measure])
    for (depth, size), values in found.items():
        grid[task.depths.index(depth), task.test_sizes.index(size)] = mean(values)
    return grid


def _line(axes: Axes, mixer: str, points: Points, **changes: Any) -> None:
    pairs = sorted(points)
    if pairs:
        axes.plot(*zip(*pairs, strict=True), **style.mark(mixer).line(**changes))


def _center(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return mean([x for x, _ in points]), mean([y for _, y in points])


def _averaged(points: Points) -> list[tuple[float, float]]:
    """One point for each x: the mean of all seeds."""
    found = defaultdict(list)
    for x, y in points:
        found[x].append(y)
    return [(x, mean(ys)) for x, ys in sorted(found.items())]


def _log(axes: Axes, axis: str, shown: Callable[[float, Any], str], *, base: int = 10) -> None:
    """A logarithmic axis ("x" or "y") with few, readable numbers; of base 2, from one power to another."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    (axes.set_xscale if axis == "x" else axes.set_yscale)("log", base=base)
    numbers = axes.xaxis if axis == "x" else axes.yaxis
    if base == 2 and axis == "y" and axes.has_data():
        low, high = numbers.get_data_interval()
        if 0 < low <= high < math.inf:
            axes.set_ylim(2.0 ** math.floor(math.log2(low)), 2.0 ** (math.floor(math.log2(high)) + 1))
    numbers.set_major_locator(LogLocator(base, subs=(1.0,) if base == 2 else (1.0, 2.0, 5.0), numticks=9))
    numbers.set_minor_locator(NullLocator())
    numbers.set_major_formatter(shown)
    numbers.set_minor_formatter(NullFormatter())


def _finish(axes: Axes, title: str, below: str) -> None:
    style.title(axes, title)
    axes.set_xlabel(below)


def _shared_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    with style.context():
        figure.legend(handles, labels, loc="outside right upper", handlelength=2.6)


def _short(value: float, _: Any = None) -> str:
    """1000 as "1k", and 1024 too where lengths are powers of two."""
    if value >= 1024 and value == int(value) and int(value) & (int(value) - 1) == 0:
        return f"{int(value) // 1024}k" if value < 2**20 else f"{int(value) // 2**20}M"
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _bytes(value: float, _: Any = None) -> str:
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def _milliseconds(value: float, _: Any = None) -> str:
    return f"{value * 1e3:g} ms"
