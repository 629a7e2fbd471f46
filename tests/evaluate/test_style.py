"""One style: every mixing has its mark, and other names keep theirs."""

from __future__ import annotations

import subprocess
import sys
from colorsys import rgb_to_hls
from itertools import combinations

import matplotlib
import pytest

from rookery.evaluate import style


def rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def luminance(color: str) -> float:
    def linear(channel: int) -> float:
        c = channel / 255
        return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4

    r, g, b = map(linear, rgb(color))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_mixings_are_told_apart():
    marks = style.MARKS.values()
    for one, other in combinations(marks, 2):
        assert one.color != other.color
        assert one.marker != other.marker


def test_mixings_are_called_what_the_table_of_mixers_calls_them():
    mixers = pytest.importorskip("rookery.rivals").MIXERS
    assert {name: mark.label for name, mark in style.MARKS.items()} == {
        name: mixer.title for name, mixer in mixers.items()
    }


def test_every_colour_has_a_partner_and_is_seen_on_its_paper():
    colors = {each.color for each in style.MARKS.values()} | set(style.SERIES)
    assert colors <= style.DARK.keys()
    for color in colors:
        assert contrast(color, style.PAPER) > 1.9, color
        assert contrast(style.DARK[color], style.DARK[style.PAPER]) > 4.5, color
    for text in (style.INK, style.MUTED):
        assert contrast(text, style.PAPER) > 4.5
        assert contrast(style.DARK[text], style.DARK[style.PAPER]) > 4.5


def test_rwkvs_are_one_family_of_hues():
    for name, mark in style.MARKS.items():
        hue, _, _ = rgb_to_hls(*(channel / 255 for channel in rgb(mark.color)))
        assert (180 <= 360 * hue <= 225) == name.startswith("rwkv"), name


def test_an_unknown_name_has_the_same_mark_in_every_process():
    program = "from rookery.evaluate.style import mark; print(mark('pythia-160m'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(style.mark("pythia-160m"))
    assert style.mark("pythia-160m").label == "pythia-160m"
    assert style.mark("rwkv6") is style.MARKS["rwkv6"]


def test_the_style_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    figure, axes = style.new_figure(1, 2)
    assert axes.shape == (1, 2)
    axes[0, 1].plot([0, 1], [0, 1], **style.mark("gla").line(linewidth=1))
    style.legend(axes[0, 1], outside=True)
    assert style.png(figure, dpi=40).startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


def test_axes_without_anything_have_no_legend():
    """matplotlib would warn."""
    _, panels = style.new_figure()
    style.legend(panels[0, 0], outside=True)
    assert panels[0, 0].get_legend() is None


def test_a_png_is_written_whole(tmp_path):
    figure, _ = style.new_figure(width=2, height=1)
    style.save_png(figure, tmp_path / "plot.png", dpi=40)
    assert (tmp_path / "plot.png").read_bytes() == style.png(figure, dpi=40)


def test_shades_go_from_one_end_to_the_other():
    assert style.shades(0) == []
    assert style.shades(1) == ["#2b9aa8"]
    assert style.shades(2) == ["#2b9aa8", "#dc6b3c"]
    assert len(set(style.shades(48))) == 48
    for color in style.shades(48):
        assert contrast(color, style.PAPER) > 2.9
        assert contrast(color, style.DARK[style.PAPER]) > 4


def test_colours_fade_to_nothing():
    shades = style.color_map(style.SERIES[0])
    assert shades(0.0)[3] == pytest.approx(0)
    assert shades(1.0)[3] == pytest.approx(1)
