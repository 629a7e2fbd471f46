"""What a report says, once, to be shown as an HTML page or as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rookery.evaluate import style
from rookery.evaluate.page import Page, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Part", "Story"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One piece: a heading, text, a note, facts, a table or a picture."""

    kind: Literal["heading", "text", "note", "facts", "table", "picture"]
    text: str = ""
    """The heading, the text, or the caption."""
    level: Literal[2, 3] = 2
    facts: Mapping[str, object] = field(default_factory=dict)
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    right: Sequence[int] = ()
    best: Mapping[int, Literal["lowest", "highest"]] = field(default_factory=dict)
    name: str = ""
    """File of the picture."""
    draw: Callable[[], Figure] | None = None


class Story:
    """Parts, from top to bottom."""

    def __init__(self, *, title: str, subtitle: str):
        self.title, self.subtitle = title, subtitle
        self.parts: list[Part] = []

    def heading(self, text: str, *, level: Literal[2, 3] = 2) -> None:
        """A heading."""
        self.parts.append(Part(kind="heading", text=text, level=level))

    def text(self, text: str) -> None:
        """Paragraphs."""
        self.parts.append(Part(kind="text", text=text))

    def note(self, text: str) -> None:
        """A paragraph that stands out."""
        self.parts.append(Part(kind="note", text=text))

    def facts(self, facts: Mapping[str, object]) -> None:
        """A few figures."""
        self.parts.append(Part(kind="facts", facts=facts))

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        caption: str = "",
        right: Sequence[int] = (),
        best: Mapping[int, Literal["lowest", "highest"]] | None = None,
    ) -> None:
        """A table, as ``Page.table`` takes it; without rows there is none."""
        if rows:
            self.parts.append(
                Part(kind="table", text=caption, columns=columns, rows=rows, right=right, best=best or {})
            )

    def picture(self, name: str, draw: Callable[[], Figure], caption: str) -> None:
        """A plot, kept as ``name`` (a PNG) beside the page."""
        self.parts.append(Part(kind="picture", text=caption, name=name, draw=draw))

    def write_page(self, path: Path) -> None:
        """Write the HTML page, and the pictures beside it."""
        page = Page(title=self.title, subtitle=self.subtitle)
        for part in self.parts:
            if part.kind == "heading":
                page.heading(part.text, level=part.level)
            elif part.kind == "text":
                page.text(part.text)
            elif part.kind == "note":
                page.note(part.text)
            elif part.kind == "facts":
                page.facts(part.facts)
            elif part.kind == "table":
                page.table(
                    part.columns, part.rows, caption=part.text, right=part.right, best=part.best or None
                )
            else:
                assert part.draw is not None
                figure = part.draw()
                style.save_png(figure, path.parent / part.name)
                page.figure(figure, caption=part.text)
        page.write(path)

    def markdown(self, pictures: str) -> str:
        """The same as Markdown, whose pictures are links.

        Args:
            pictures: where they are, as a path relative to the Markdown file.
        """
        lines = [f"# {self.title}", "", self.subtitle]
        for part in self.parts:
            lines.append("")
            if part.kind == "heading":
                lines.append(f"{'#' * part.level} {part.text}")
            elif part.kind == "note":
                lines.append(f"> {part.text}")
            elif part.kind == "text":
                lines.append(part.text)
            elif part.kind == "facts":
                lines.append(
                    "; ".join(f"{name}: {number(value)}" for name, value in part.facts.items()) + "."
                )
            elif part.kind == "picture":
                lines += [f"![{part.text.partition('.')[0]}]({pictures}/{part.name})", "", part.text]
            else:
                lines += [part.text, ""] if part.text else []
                lines += _markdown_table(part)
        return "\n".join(lines) + "\n"


def _markdown_table(part: Part) -> list[str]:
    def aligned(column: int) -> bool:
        values: list[Any] = [row[column] for row in part.rows]
        return column in part.right or all(isinstance(v, int | float | None) for v in values)

    def cell(value: object) -> str:
        return number(value).replace("|", "\\|").replace("\n", " ")

    rule = ["---:" if aligned(i) else "---" for i in range(len(part.columns))]
    rows = [part.columns, rule, *([cell(value) for value in row] for row in part.rows)]
    return [f"| {' | '.join(row)} |" for row in rows]
