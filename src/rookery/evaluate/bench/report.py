"""The medians of all rounds, as plots and a page."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rookery.evaluate import style
from rookery.evaluate.bench.families import FAMILIES
from rookery.evaluate.bench.point import Point, Row
from rookery.evaluate.machine import installed_versions, processor
from rookery.evaluate.page import Page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Summary", "label", "summaries", "write_report"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All rounds of one point."""

    point: Point
    """Of the first round."""

    rows: tuple[Row, ...]
    """Those that were measured."""

    skipped: str
    """Why the others were not; empty where all were."""

    def median(self, figure: str) -> float | None:
        """Of a figure of ``Row``, over the rounds that have it."""
        values = [value for row in self.rows if (value := getattr(row, figure)) is not None]
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class _Plot:
    """One figure of the report."""

    file: str
    figure: str
    title: str
    axis: str
    scale: float
    caption: str


_PLOTS = (
    _Plot(
        "first_token.png",
        "first_token_s",
        "Time to the first token",
        "seconds",
        1.0,
        "Seconds from a prompt to the first token after it, by the prompt's length.",
    ),
    _Plot(
        "decode.png",
        "tokens_per_s",
        "Decoding",
        "tokens/s",
        1.0,
        "Tokens per second of one stream, after a prompt of so many tokens.",
    ),
    _Plot(
        "memory.png",
        "running_bytes",
        "Peak memory",
        "MB",
        1e-6,
        "Most memory while reading the prompt and decoding, less what the process had before the weights.",
    ),
)


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """One for each point, whatever its round, in the order of series and context."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        point = row.point
        groups.setdefault((point.series, point.context, point.tokens, point.threads), []).append(row)
    order = {series: i for i, series in enumerate(dict.fromkeys(row.point.series for row in rows))}
    made = [
        Summary(
            point=group[0].point,
            rows=tuple(row for row in group if not row.skipped),
            skipped=next((row.skipped for row in group if row.skipped), ""),
        )
        for group in groups.values()
    ]
    return sorted(made, key=lambda each: (order[each.point.series], each.point.context))


def label(point: Point) -> str:
    """A line of a plot: "RWKV-7 0.1B, native float32"."""
    known = FAMILIES.get(point.family)
    name = f"{known.title} {point.size}" if known is not None else Path(point.size).name
    return f"{name}, {point.backend} {point.dtype}"


def write_report(rows: Sequence[Row], folder: str | Path) -> Path:
    """Write the plots and ``index.html``; returns the page's path.

    Args:
        rows: of all rounds.
        folder: where they go.
    """
    folder = Path(folder)
    made = summaries(rows)
    page = Page(title="Speed and memory", subtitle=_machine(rows))
    devices = list(dict.fromkeys(each.point.device for each in made))
    measured = [each for each in made if each.rows]
    if measured:
        page.heading("By context")
    for plot in _PLOTS:
        for device in devices:
            here = [each for each in measured if each.point.device == device]
            if not here:
                continue
            figure = _draw(here, plot, lambda each: each.point.context, "tokens of context")
            where = f"On {device}. " if len(devices) > 1 else ""
            page.figure(figure, caption=where + plot.caption)
            name = plot.file if len(devices) == 1 else f"{device}_{plot.file}"
            style.save_png(figure, folder / name)
    if measured:
        _by_size(page, measured, folder)
    page.heading("Figures")
    page.text(
        f"{_rounds(max(len(each.rows) for each in made))}, each point in a process of its own. The points of "
        "a round are measured one after the other, so a machine that drifts hits all alike. Loaded and peak "
        "are resident memory above what the process had before the weights."
        if measured
        else "Nothing could be measured."
    )
    if measured:
        columns = [name for name in _COLUMNS if name != "device" or len(devices) > 1]
        cells = [_cells(each) for each in measured]
        page.table(
            columns, [[each[name] for name in columns] for each in cells], right=(columns.index("size"),)
        )
    left_out = [each for each in made if each.skipped]
    if left_out:
        page.heading("Left out")
        page.table(
            ["model", "device", "context", "why"],
            [[label(each.point), each.point.device, each.point.context, each.skipped] for each in left_out],
        )
    _method(page, measured)
    path = folder / "index.html"
    page.write(path)
    return path


_COLUMNS = (
    "model",
    "run by",
    "device",
    "size",
    "context",
    "first token (s)",
    "tokens/s",
    "loaded (MB)",
    "peak (MB)",
)


def _cells(each: Summary) -> dict[str, object]:
    parameters, memory = each.median("parameters"), each.median("running_bytes")
    loaded, before = each.median("loaded_bytes"), each.median("before_bytes")
    rise = None if loaded is None or before is None or each.point.device != "cpu" else loaded - before
    name, _, by = label(each.point).partition(", ")
    return {
        "model": name,
        "run by": by,
        "device": each.point.device,
        "size": "–" if parameters is None else _short(parameters),
        "context": each.point.context,
        "first token (s)": each.median("first_token_s"),
        "tokens/s": each.median("tokens_per_s"),
        "loaded (MB)": None if rise is None else round(rise / 1e6),
        "peak (MB)": None if memory is None else round(memory / 1e6),
    }


def _rounds(count: int) -> str:
    return "Of one round" if count == 1 else f"Medians of {count} rounds"


def _short(count: float) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _by_size(page: Page, measured: Sequence[Summary], folder: Path) -> None:
    """Speed and memory against the number of parameters, where there are several, at one context."""
    sizes: dict[tuple[str, ...], set[str]] = {}
    for each in measured:
        point = each.point
        sizes.setdefault((point.family, point.backend, point.device, point.dtype), set()).add(point.size)
    if max(map(len, sizes.values())) < 2:
        return
    counts: dict[int, int] = {}
    for each in measured:
        counts[each.point.context] = counts.get(each.point.context, 0) + 1
    # The context that most models were measured with, the longest of such.
    context = max(counts, key=lambda length: (counts[length], length))
    here = [each for each in measured if each.point.context == context]
    page.heading("By size")
    for plot in _PLOTS:
        figure = _draw(
            here, plot, lambda each: each.median("parameters") or 0, "parameters", joined_sizes=True
        )
        page.figure(figure, caption=f"{plot.title} by size, with a context of {context:,} tokens.")
        style.save_png(figure, folder / f"size_{plot.file}")


_FAMILY_MARKS = {
    "rwkv": style.MARKS["rwkv7"],
    "rwkv6": style.MARKS["rwkv6"],
    "rwkv5": style.MARKS["rwkv5"],
    "rwkv4": style.MARKS["rwkv4"],
    "file": style.MARKS["rwkv7"],
    "neox": style.MARKS["attention"],
    "opt": style.Mark(label="OPT", color=style.SERIES[2], marker="p"),
    "bloom": style.Mark(label="BLOOM", color=style.SERIES[3], marker="h"),
}
_SIZE_MARKERS = "os^DvPX*ph"
_DASHES = {"native": (), "torch": (4, 2), "transformers": ()}


def _draw(
    measured: Sequence[Summary],
    plot: _Plot,
    place: Callable[[Summary], float],
    axis_label: str,
    *,
    joined_sizes: bool = False,
) -> Figure:
    """A line for each series; with ``joined_sizes`` one for all sizes of a family."""
    figure, grid = style.new_figure(width=9.0, height=3.9)
    axis: Axes = grid[0, 0]
    lines: dict[tuple[str, ...], list[Summary]] = {}
    for each in measured:
        point = each.point
        alone = (point.family, "", *point.series[2:]) if joined_sizes else point.series
        lines.setdefault(alone, []).append(each)
    sizes: dict[str, list[str]] = {}
    dtypes: dict[tuple[str, ...], list[str]] = {}
    for series, members in lines.items():
        family, size, backend, device, dtype = series
        known = sizes.setdefault(family, [])
        number = known.index(size) if size in known else len(known)
        if size not in known:
            known.append(size)
        types = dtypes.setdefault((family, size, backend, device), [])
        types.append(dtype)
        points = [
            (place(each), value * plot.scale) for each in members if (value := each.median(plot.figure))
        ]
        if not points:
            continue
        x, y = zip(*sorted(points), strict=True)
        mark = _FAMILY_MARKS.get(family) or style.mark(family)
        text = label(members[0].point)
        if joined_sizes:
            title = FAMILIES[family].title if family in FAMILIES else "files"
            text = f"{title}, {backend} {dtype}"
        axis.plot(
            x,
            y,
            color=mark.color,
            marker=_SIZE_MARKERS[number % len(_SIZE_MARKERS)],
            # A size smaller than the one before it has a thinner line; so has a second number type.
            alpha=max(0.45, 1 - 0.25 * (len(types) - 1)),
            label=text,
            **({"dashes": _DASHES[backend]} if _DASHES[backend] else {}),
        )
    axis.set_xscale("log", base=10 if joined_sizes else 2)
    _ticks(axis, joined_sizes=joined_sizes)
    _plain_log(axis)
    axis.set_xlabel(axis_label)
    axis.set_ylabel(plot.axis)
    style.title(axis, plot.title)
    style.legend(axis, outside=True)
    return figure


def _ticks(axis: Axes, *, joined_sizes: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if joined_sizes:
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value).replace(".0 ", " ")))
    else:
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _plain_log(axis: Axes) -> None:
    """A logarithmic axis with plain numbers; it has room for a factor of four at least."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not axis.lines:
        return
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    if high / low < 4:
        middle = (low * high) ** 0.5
        axis.set_ylim(middle / 2, middle * 2)
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _method(page: Page, measured: Sequence[Summary]) -> None:
    page.heading("How it was measured")
    page.text(
        "Every point runs in a fresh process. After a short warm-up the prompt is read from an empty "
        "state or cache, "
        "with the logits of its last token alone, and the likeliest token is fed back. Tokens per second "
        "are 1 / the "
        "median of the steps. Peak memory is the kernel's VmHWM, reset after the weights are there, less "
        "what the "
        "process had before them; on a GPU it is what torch held."
    )
    attention = {
        f"{FAMILIES[each.point.family].title}: {row.attention}"
        for each in measured
        for row in each.rows
        if row.attention
    }
    if attention:
        page.text(
            f"Attention in transformers ({', '.join(sorted(attention))}). Weights of named sizes are "
            "random, which "
            "changes no shape; positions are extended to the longest context."
        )


def _machine(rows: Sequence[Row]) -> str:
    versions = installed_versions(("rookery", "torch", "transformers"))
    present = [f"{name} {number}" for name, number in versions.items() if number is not None]
    threads = sorted({row.point.threads for row in rows})
    used = " and ".join(map(str, threads)) + (" thread" if threads == [1] else " threads")
    return f"{processor()}, {used}; {', '.join(present)}"
