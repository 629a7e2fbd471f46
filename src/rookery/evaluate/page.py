"""A self-contained HTML page: one file, no network, light and dark, readable on a phone and on paper.

page = Page(title="...", subtitle="...")
page.heading("Loss"); page.text("..."); page.table(columns, rows); page.figure(figure, caption="...")
page.write("report.html")
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeGuard

import rookery
from rookery.errors import ConfigError
from rookery.evaluate import style
from rookery.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Page", "number"]

_PNG = b"\x89PNG\r\n\x1a\n"


def number(value: object) -> str:
    """A value as a table shows it: whole numbers in full, others to 4 digits, what is missing as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")
        return _power(digits).replace("-", "−")
    return str(value)


def _power(digits: str) -> str:
    mantissa, e, exponent = digits.partition("e")
    return f"{mantissa} · 10^{int(exponent)}" if e else digits


class Page:
    """Collects what a page shows, from top to bottom.

    All text is escaped, but for what ``html`` is given; `backquotes` in texts and captions mark code.

    Args:
        title: the page's title and first line.
        subtitle: a line below it.
    """

    def __init__(self, *, title: str, subtitle: str = ""):
        self.title = title
        self.subtitle = subtitle
        self._parts: list[str] = []
        self._headings: list[tuple[str, str]] = []

    def heading(self, text: str, *, level: Literal[2, 3] = 2) -> None:
        """A heading; those of level 2 are in the list of contents once there are three of them."""
        anchor = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"
        taken = {each for each, _ in self._headings}
        if anchor in taken:
            anchor = next(f"{anchor}-{i}" for i in range(2, len(taken) + 3) if f"{anchor}-{i}" not in taken)
        if level == 2:
            self._headings.append((anchor, text))
        self._parts.append(f'<h{level} id="{anchor}">{_inline(text)}</h{level}>')

    def text(self, text: str) -> None:
        """One paragraph, or several with empty lines between them."""
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            self._parts.append(f"<p>{_inline(paragraph)}</p>")

    def note(self, text: str) -> None:
        """A paragraph that stands out: what was left out and why, what to beware of."""
        self._parts.append(f'<p class="note">{_inline(text)}</p>')

    def facts(self, facts: Mapping[str, object]) -> None:
        """A few figures, large: name -> value (``number`` shows it)."""
        tiles = "".join(
            f"<div><dt>{_inline(name)}</dt><dd>{escape(number(value))}</dd></div>"
            for name, value in facts.items()
        )
        self._parts.append(f'<dl class="facts">{tiles}</dl>')

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        caption: str = "",
        right: Sequence[int] = (),
        best: Mapping[int, Literal["lowest", "highest"]] | None = None,
    ) -> None:
        """A table. Columns in which all values are numbers (or missing) stand right-aligned.

        Args:
            columns: headings.
            rows: values; ``number`` shows them.
            caption: above the table.
            right: columns of text to right-align as well, such as ``1.2 ± 0.1``.
            best: columns of numbers -> which of them to emphasise.

        Raises:
            ConfigError: a row has another number of values than there are columns.
        """
        for index, row in enumerate(rows):
            if len(row) != len(columns):
                raise ConfigError(f"row {index} has {len(row)} values for {len(columns)} columns")
        align = [
            ' class="n"' if i in right or _is_numeric([row[i] for row in rows]) else ""
            for i in range(len(columns))
        ]
        winners = {
            column: (min if which == "lowest" else max)(present)
            for column, which in (best or {}).items()
            if (present := [value for row in rows if _is_finite(value := row[column])])
        }
        head = "".join(f"<th{align[i]}>{_inline(name)}</th>" for i, name in enumerate(columns))
        body = []
        for row in rows:
            cells = []
            for i, value in enumerate(row):
                shown = _inline(value) if isinstance(value, str) else _superscript(escape(number(value)))
                if i in winners and _is_finite(value) and value == winners[i]:
                    shown = f"<strong>{shown}</strong>"
                cells.append(f"<td{align[i]}>{shown}</td>")
            body.append(f"<tr>{''.join(cells)}</tr>")
        title = f"<caption>{_inline(caption)}</caption>" if caption else ""
        self._parts.append(
            f'<div class="table"><table>{title}<thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>"
        )

    def figure(self, picture: Figure | bytes | str, *, caption: str = "", alt: str = "") -> None:
        """A picture.

        Args:
            picture: a matplotlib figure, whose house colours follow the reader's light or dark paper; a PNG;
                or SVG text.
            caption: below it.
            alt: what a reader hears who does not see it; by default the caption.

        Raises:
            ConfigError: it is none of these.
        """
        alt = escape(alt or caption, quote=True)
        if isinstance(picture, bytes):
            if not picture.startswith(_PNG):
                raise ConfigError("a picture in bytes must be a PNG")
            data = base64.b64encode(picture).decode()
            shown = f'<img class="paper" alt="{alt}" src="data:image/png;base64,{data}">'
        else:
            text = picture if isinstance(picture, str) else style.svg(picture)
            if not text.lstrip().startswith("<svg"):
                raise ConfigError("a picture in text must be SVG that starts with <svg")
            shown = f'<div class="plot" role="img" aria-label="{alt}">{_themed(text)}</div>'
        below = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
        self._parts.append(f"<figure>{shown}{below}</figure>")

    def html(self, html: str) -> None:
        """HTML as it is. It must be trusted: nothing is escaped."""
        self._parts.append(html)

    def render(self) -> str:
        """The page's text."""
        contents = ""
        if len(self._headings) >= 3:
            links = "".join(f'<a href="#{anchor}">{_inline(text)}</a>' for anchor, text in self._headings)
            contents = f"<nav>{links}</nav>"
        subtitle = f'<p class="subtitle">{_inline(self.subtitle)}</p>' if self.subtitle else ""
        body = "\n".join(self._parts)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_variables()}{_CSS}</style>\n</head>\n<body>\n"
            f"<header><h1>{_inline(self.title)}</h1>{subtitle}</header>\n{contents}\n<main>\n{body}\n</main>\n"
            f"<footer>rookery {escape(rookery.__version__)}</footer>\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> None:
        """Write the page; a reader finds the old file or the whole new one."""
        with atomic_write(path) as file:
            file.write(self.render().encode("utf-8", errors="replace"))


def _inline(text: object) -> str:
    """Escaped text, with code between backquotes, and powers of ten set as such."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(str(text)))
    return _superscript(marked)


def _superscript(text: str) -> str:
    return re.sub(r"10\^([-−]?\d+)", r"10<sup>\1</sup>", text)


def _is_numeric(values: Sequence[object]) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in present
    )


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _themed(svg: str) -> str:
    """SVG in which house colours are the page's variables."""
    for color in style.DARK:
        svg = re.sub(re.escape(color), f"var({_name(color)})", svg, flags=re.IGNORECASE)
    return svg


def _name(color: str) -> str:
    return f"--c{color.lstrip('#')}"


def _variables() -> str:
    light = "".join(f"{_name(color)}:{color};" for color in style.DARK)
    dark = "".join(f"{_name(color)}:{partner};" for color, partner in style.DARK.items())
    names = {
        "ink": style.INK,
        "muted": style.MUTED,
        "line": style.GRID,
        "paper": style.PAPER,
        "accent": style.SERIES[0],
    }
    own = "".join(f"--{name}:var({_name(color)});" for name, color in names.items())
    return (
        f":root{{color-scheme:light dark;{light}{own}--soft:#f5f6f8}}\n"
        f"@media (prefers-color-scheme:dark){{@media screen{{:root{{{dark}--soft:#1c2027}}}}}}\n"
    )


_CSS = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0 auto;max-width:62rem;padding:2.5rem 1.25rem 3rem;background:var(--paper);color:var(--ink);
font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
header{margin-bottom:1.5rem}
h1{font-size:1.9rem;line-height:1.2;letter-spacing:-.02em;margin:0}
h2{font-size:1.3rem;letter-spacing:-.01em;margin:3rem 0 .6rem;
padding-top:.9rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:2rem 0 .4rem}
p{margin:.6rem 0;max-width:46rem}
.subtitle{color:var(--muted);font-size:1.05rem;margin:.45rem 0 0}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;font-size:.92rem;padding:.7rem 0;
border-block:1px solid var(--line)}
nav+main>h2:first-child,main>h2:first-child{border-top:0;margin-top:1rem}
a{color:var(--accent);text-decoration:none}
a:hover{text-decoration:underline}
code{font:.88em ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;background:var(--soft);
padding:.1em .35em;border-radius:4px}
.note{background:var(--soft);border-left:3px solid var(--accent);padding:.6rem .9rem;
border-radius:0 6px 6px 0}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.7rem;margin:1.2rem 0}
.facts div{background:var(--soft);border-radius:8px;padding:.7rem .9rem}
.facts dt{color:var(--muted);font-size:.82rem}
.facts dd{margin:.1rem 0 0;font-size:1.35rem;font-weight:600;letter-spacing:-.01em;
font-variant-numeric:tabular-nums}
.table{overflow-x:auto;margin:1.1rem 0}
table{border-collapse:collapse;min-width:min(100%,28rem);font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--muted);padding-bottom:.5rem}
th,td{padding:.36rem .85rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:baseline}
th{font-weight:600;color:var(--muted);font-size:.85rem;white-space:nowrap;border-bottom-color:var(--muted)}
th:first-child,td:first-child{padding-left:.1rem}
td:first-child{min-width:7rem}
th.n,td.n{text-align:right;white-space:nowrap}
tbody tr:hover{background:var(--soft)}
figure{margin:1.4rem 0}
figcaption{color:var(--muted);font-size:.9rem;margin-top:.4rem;max-width:46rem}
.plot{overflow-x:auto}
.plot svg{display:block;width:100%;min-width:30rem;height:auto}
.plot svg text{font-family:inherit!important}
img.paper{display:block;max-width:100%;height:auto;background:#fff;border-radius:8px}
footer{margin-top:3.5rem;padding-top:.8rem;border-top:1px solid var(--line);color:var(--muted);
font-size:.85rem}
@media (max-width:40rem){body{padding:1.5rem 1rem 2rem}h1{font-size:1.5rem}h2{margin-top:2.2rem}}
@media print{body{max-width:none;padding:0}nav{display:none}figure,table{break-inside:avoid}}
"""
