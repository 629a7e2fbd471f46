"""How fast models run and how much memory they take, against context and size.

    rows = run(points, folder)             # each point in a fresh process; CSV, resumable
    write_report(rows, folder)             # plots and a page

``families.py`` has the published shapes, ``point.py`` what one measurement is, ``worker.py`` the process that
makes it, ``runner.py`` many of them, ``report.py`` what a person sees.
"""

from __future__ import annotations

from rookery.evaluate.bench.families import FAMILIES, points_of_families, points_of_model
from rookery.evaluate.bench.point import Point, Row
from rookery.evaluate.bench.report import write_report
from rookery.evaluate.bench.runner import run

__all__ = ["FAMILIES", "Point", "Row", "points_of_families", "points_of_model", "run", "write_report"]
