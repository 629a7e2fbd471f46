"""The house style of every plot, and which colour and marker stand for what.

Colours come in pairs, for light and for dark paper. Figures are drawn in the light ones. Pages hold them as
SVG in which every house colour is a variable (``page.py``), so that a plot follows the paper.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rookery.errors import require
from rookery.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DARK",
    "GRID",
    "INK",
    "MARKS",
    "MUTED",
    "PAPER",
    "SERIES",
    "Mark",
    "color_map",
    "context",
    "legend",
    "mark",
    "new_figure",
    "png",
    "save_png",
    "shades",
    "svg",
    "title",
]

INK, MUTED, GRID, PAPER = "#1f2430", "#5d6675", "#dde1e7", "#ffffff"

SERIES = (
    "#2457c5",
    "#d9622b",
    "#2f8f5b",
    "#9a4fb5",
    "#c23a4b",
    "#b08416",
    "#2b9aa8",
    "#7a6a58",
)
"""Colours for what has no colour of its own, in this order."""

_RWKV4, _RWKV5, _RWKV6, _RWKV7 = "#79bcc4", "#35a3b3", "#2b80c5", "#2457c5"
_ATTENTION, _RNN, _LSTM = "#d9622b", "#a39a90", "#7a6a58"
_AFT, _AFT_SIMPLE, _GLA, _DELTANET = "#b08416", "#d4b04c", "#2f8f5b", "#9a4fb5"

DARK = {
    INK: "#e7eaf0",
    MUTED: "#9aa4b4",
    GRID: "#323843",
    PAPER: "#14171c",
    _RWKV4: "#a5dde3",
    _RWKV5: "#55c3d2",
    _RWKV6: "#5ba9ec",
    _RWKV7: "#7f9ffb",
    _ATTENTION: "#f28b58",
    _RNN: "#b8b0a6",
    _LSTM: "#a8957f",
    _AFT: "#d9aa3d",
    _AFT_SIMPLE: "#efd17c",
    _GLA: "#5dbd87",
    _DELTANET: "#c583de",
    "#c23a4b": "#ef7080",
    "#2b9aa8": "#4dc2d0",
}
"""Light colour -> its partner on dark paper."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What stands for one thing in every plot."""

    label: str
    color: str
    marker: str
    dashes: tuple[float, ...] = ()
    """Lengths of line and gap; none for a solid line."""

    def line(self, **changes: Any) -> dict[str, Any]:
        """Keywords for ``Axes.plot``."""
        style = {"color": self.color, "marker": self.marker, "label": self.label}
        return style | ({"dashes": self.dashes} if self.dashes else {}) | changes


MARKS = {
    "rwkv4": Mark(label="RWKV-4", color=_RWKV4, marker="v"),
    "rwkv5": Mark(label="RWKV-5.2", color=_RWKV5, marker="s"),
    "rwkv6": Mark(label="RWKV-6", color=_RWKV6, marker="D"),
    "rwkv7": Mark(label="RWKV-7", color=_RWKV7, marker="o"),
    "attention": Mark(label="Attention", color=_ATTENTION, marker="^"),
    "rnn": Mark(label="RNN", color=_RNN, marker="x", dashes=(4, 2)),
    "lstm": Mark(label="LSTM", color=_LSTM, marker="P", dashes=(4, 2)),
    "aft": Mark(label="AFT", color=_AFT, marker="<", dashes=(1.5, 1.5)),
    "aft-simple": Mark(label="AFT-simple", color=_AFT_SIMPLE, marker=">", dashes=(1.5, 1.5)),
    "gla": Mark(label="GLA", color=_GLA, marker="p", dashes=(6, 1.5, 1.5, 1.5)),
    "deltanet": Mark(label="DeltaNet", color=_DELTANET, marker="h", dashes=(6, 1.5, 1.5, 1.5)),
}
"""Mixing -> its mark. The RWKVs have one family of hues, from light to deep; what is compared has others."""

_OTHER_MARKERS = "osD^vPX*"

_RC: dict[str, Any] = {
    "font.size": 10.5,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 3.5,
    "ytick.major.size": 3.5,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.9,
    "lines.markersize": 4.5,
    "lines.markeredgewidth": 1.0,
    # Text stays text: it is searched and read aloud, and a page's own font draws it.
    "svg.fonttype": "none",
    "svg.hashsalt": "rookery",
}


def mark(name: str) -> Mark:
    """The mark of a mixing, or one for any other name: the same at every call, in every run."""
    if name in MARKS:
        return MARKS[name]
    # zlib.crc32 and not hash(), which differs from process to process.
    number = zlib.crc32(name.encode())
    color = SERIES[number % len(SERIES)]
    return Mark(label=name, color=color, marker=_OTHER_MARKERS[number // len(SERIES) % len(_OTHER_MARKERS)])


@contextmanager
def context() -> Iterator[None]:
    """What is drawn inside has the house style, on a canvas that needs no display.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", extra="train", purpose="Drawing")
    with matplotlib.rc_context(_RC):
        yield


def new_figure(
    rows: int = 1, columns: int = 1, *, width: float = 8.0, height: float = 4.2, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure, and its axes [rows, columns]; options go to ``Figure.subplots``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with context():
        # The object interface: pyplot would keep every figure, and choose a display.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend(axes: Axes, *, outside: bool = False, **options: Any) -> None:
    """A legend in house style, of axes with something in them; ``outside`` puts it to their right."""
    if not axes.get_legend_handles_labels()[0]:
        return
    place: dict[str, Any] = (
        {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0} if outside else {}
    )
    with context():
        axes.legend(**place | options)


def title(axes: Axes, text: str, **options: Any) -> None:
    """A title in house style: bold, on the left."""
    with context():
        axes.set_title(text, **options)


_SHADES = ("#2b9aa8", "#3f83dc", "#8a63d2", "#c9549a", "#dc6b3c")


def shades(count: int) -> list[str]:
    """Colours of things in an order, such as layers from the lowest: teal, blue, violet, pink, orange.

    They are seen on light and on dark paper alike.
    """
    places = [i * (len(_SHADES) - 1) / max(count - 1, 1) for i in range(count)]
    colors = []
    for place in places:
        low = min(int(place), len(_SHADES) - 2)
        pairs = zip(_channels(_SHADES[low]), _channels(_SHADES[low + 1]), strict=True)
        colors.append("#" + "".join(f"{round(a + (place - low) * (b - a)):02x}" for a, b in pairs))
    return colors


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def color_map(color: str = SERIES[0]) -> Any:
    """From nothing (transparent) to a colour: a matplotlib colour map that suits light and dark paper."""
    require("matplotlib", extra="train", purpose="Drawing")
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    return LinearSegmentedColormap.from_list(f"to {color}", [(*to_rgb(color), 0.0), (*to_rgb(color), 1.0)])


def png(figure: Figure, *, dpi: int = 160) -> bytes:
    """The figure as a PNG on white paper."""
    picture = io.BytesIO()
    with context():
        figure.savefig(picture, format="png", dpi=dpi, facecolor=PAPER)
    return picture.getvalue()


def svg(figure: Figure) -> str:
    """The figure as SVG without a background; the same figure gives the same text."""
    picture = io.StringIO()
    with context():
        figure.savefig(picture, format="svg", transparent=True, metadata={"Date": None})
    text = picture.getvalue()
    return text[text.index("<svg") :]


def save_png(figure: Figure, path: str | Path, *, dpi: int = 160) -> None:
    """Write the figure as a PNG on white paper; a reader finds the old file or the whole new one."""
    picture = png(figure, dpi=dpi)
    with atomic_write(path) as file:
        file.write(picture)
