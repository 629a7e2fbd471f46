"""Comparing mixers: RWKV and its rivals at equal parameters, on the same tokens in the same order.

    from rookery.evaluate.compare import CompareConfig, compare, data_set
    book = data_set("book.txt")
    compare(CompareConfig(data=(book,), mixers=("rwkv7", "attention"), tokens=500_000), "runs/compare")

- ``config.py`` what a comparison is;  ``cells.py`` the pieces it is made of, and its folder.
- ``plan.py`` the budget, dealt out by measured speed;  ``run.py`` the whole;  ``workers.py`` a process for
  each piece;  ``display.py`` what a person sees.
- ``text.py``, ``task_cells.py``, ``costs.py`` what the pieces do;  ``perform.py`` chooses;  ``training.py``
  and ``models.py`` what they share.
- ``findings.py`` the results together;  ``fit.py`` exponents;  ``tables.py``, ``plots.py``, ``story.py`` and
  ``report.py`` CSV, plots, page.

Importing this package imports no torch; ``compare`` and ``resume`` do, at their first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rookery.errors import require
from rookery.evaluate.compare.config import CompareConfig, DataSet, data_set

if TYPE_CHECKING:
    from rookery.evaluate.compare.run import CompareResult, compare, resume

__all__ = ["CompareConfig", "CompareResult", "DataSet", "compare", "data_set", "resume"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        require("torch", extra="train", purpose="Comparing mixers")
        require("matplotlib", extra="train", purpose="The plots of a comparison")
        from rookery.evaluate.compare import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
