"""Write docs/cli.md, the help of every verb, from the code: ``python -m scripts.help_pages``."""

from __future__ import annotations

import os
from pathlib import Path

from rookery.cli import VERBS, verb_parser

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
COLUMNS = 110


def page() -> str:
    """The whole page, as it should be."""
    os.environ["COLUMNS"] = str(COLUMNS)
    os.environ["NO_COLOR"] = "1"
    lines = [
        "# The command line",
        "",
        "Made from the code by `python -m scripts.help_pages`; a test compares.",
        "",
    ]
    for heading, verbs in VERBS.items():
        lines += [f"## {heading}", ""]
        for verb, summary in verbs.items():
            text = verb_parser(verb).format_help().rstrip()
            lines += [f"### rookery {verb}", "", f"{summary[0].upper()}{summary[1:]}.", "", "```text", text]
            lines += ["```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
