"""Pages are one file that needs nothing else, and show what they were given."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from rookery.errors import ConfigError
from rookery.evaluate import style
from rookery.evaluate.page import Page, number

VOID = {"meta", "img", "br", "link", "path", "use", "rect"}


class Balance(HTMLParser):
    """Tags that do not close each other, and where the page would fetch from."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]

    def handle_startendtag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def drawing():
    figure, axes = style.new_figure(height=2)
    axes[0, 0].plot([1, 2, 3], [3, 1, 2], **style.mark("rwkv7").line())
    style.title(axes[0, 0], "A plot")
    style.legend(axes[0, 0])
    return figure


@pytest.fixture
def page() -> Page:
    page = Page(title="Loss <b>& more</b>", subtitle="with `code`")
    page.heading("First")
    page.text("One.\n\nTwo < three.")
    page.facts({"state": 12345, "loss": 1.25})
    page.table(["mixer", "loss", "note"], [["rwkv7", 1.5, "<i>"], ["lstm", None, "x"]], caption="Losses")
    page.figure(drawing(), caption="Loss by tokens")
    page.figure(style.png(drawing()), caption="As a PNG")
    page.heading("First")
    page.heading("Third")
    page.note("Left out.")
    return page


def test_a_page_is_whole_html_and_fetches_nothing(page, tmp_path):
    page.write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
    assert balance.wrong == []
    assert balance.fetched
    assert all(each.startswith(("#", "data:")) for each in balance.fetched)
    assert "<script" not in text
    assert "url(http" not in text


def test_text_is_escaped_and_code_marked(page):
    text = page.render()
    assert "<title>Loss &lt;b&gt;&amp; more&lt;/b&gt;</title>" in text
    assert "with <code>code</code>" in text
    assert "<p>One.</p>\n<p>Two &lt; three.</p>" in text
    assert "&lt;i&gt;" in text


def test_headings_have_anchors_of_their_own_and_make_the_contents(page):
    text = page.render()
    assert re.findall(r'<a href="#([^"]+)"', text) == ["first", "first-2", "third"]
    assert re.findall(r'<h2 id="([^"]+)"', text) == ["first", "first-2", "third"]


def test_columns_of_numbers_stand_right(page):
    text = page.render()
    assert '<th>mixer</th><th class="n">loss</th><th>note</th>' in text
    assert '<td>rwkv7</td><td class="n">1.500</td>' in text
    assert '<td class="n">–</td>' in text


def test_the_best_of_a_column_is_emphasised():
    page = Page(title="t")
    page.table(["a", "b"], [[1.0, 5], [None, 7], [0.5, 6]], best={0: "lowest", 1: "highest"})
    assert re.findall(r"<strong>(.*?)</strong>", page.render()) == ["7", "0.5000"]


def test_plots_follow_the_paper(page):
    text = page.render()
    drawn = text[text.index('<div class="plot"') : text.index("</svg>")]
    assert "A plot" in drawn
    assert f"var(--c{style.MARKS['rwkv7'].color[1:]})" in drawn
    assert not [color for color in style.DARK if color in drawn]
    for light, dark in style.DARK.items():
        assert f"--c{light[1:]}:{light};" in text
        assert f"--c{light[1:]}:{dark};" in text


def test_the_same_page_is_the_same_file(page):
    first = Page(title="t")
    first.figure(drawing())
    second = Page(title="t")
    second.figure(drawing())
    assert first.render() == second.render()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (1234567, "1,234,567"),
        (-3, "−3"),
        (1.23456, "1.235"),
        (12345.6, "12,346"),
        (999.96, "1000"),
        (1.5e-7, "1.500 · 10^−7"),
        (True, "yes"),
        ("text", "text"),
    ],
)
def test_numbers_as_a_table_shows_them(value, shown):
    assert number(value) == shown


def test_powers_are_raised():
    page = Page(title="t")
    page.table(["x"], [[1.5e-7]])
    assert "1.500 · 10<sup>−7</sup>" in page.render()


def test_what_is_no_picture_or_no_table_is_refused():
    page = Page(title="t")
    with pytest.raises(ConfigError, match="PNG"):
        page.figure(b"GIF89a")
    with pytest.raises(ConfigError, match="SVG"):
        page.figure("<p>")
    with pytest.raises(ConfigError, match="row 1 has 1 values for 2 columns"):
        page.table(["a", "b"], [[1, 2], [3]])


def test_a_failed_write_leaves_the_old_page(tmp_path):
    path = tmp_path / "none" / "page.html"
    with pytest.raises(FileNotFoundError):
        Page(title="t").write(path)
