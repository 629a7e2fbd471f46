"""The docs say what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="argparse words its help otherwise from Python 3.13 on"
)
def test_the_help_in_the_docs_is_that_of_the_code():
    program = "from scripts.help_pages import page; import sys; sys.stdout.write(page())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == (ROOT / "docs" / "cli.md").read_text(), "run: python -m scripts.help_pages"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_architecture_names_every_package():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for package in (ROOT / "src" / "rookery").iterdir():
        if (package / "__init__.py").exists():
            assert f"`{package.name}`" in text or f"({package.name})" in text, (
                f"{package.name} is not described"
            )
