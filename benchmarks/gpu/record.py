"""What came of a run: figures with their bounds, facts; written down after each one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import COPY, MATRIX, READ, Part
from benchmarks.gpu.process import Message
from benchmarks.gpu.setting import Fact, Limits
from benchmarks.report import Figure, write_figures

__all__ = ["PEERS", "Record"]

PEERS = ("triton", "fla-core", "flash-linear-attention")


class Record:
    """Figures by group and name. A figure that comes twice is improved: the later one counts.

    Args:
        path: of the JSON file, or None.
        facts: of the run.
        say: tells a person what comes.
    """

    def __init__(self, path: Path | None, facts: dict[str, Any], say: Callable[[str], None]):
        self.path, self.facts, self.say = path, facts, say
        self.groups: dict[str, dict[str, Figure]] = {}
        self._lock = threading.Lock()

    def promise(self, part: Part) -> None:
        """Figures that have failed unless they come."""
        for figure in part.promised:
            self.groups.setdefault(part.group, {})[figure.figure] = figure

    def take(self, part: Part, message: Message) -> None:
        """One figure or fact of a part."""
        with self._lock:
            if isinstance(message, Fact):
                self.facts[message.name] = message.value
                return
            own = self.groups.setdefault(part.group, {})
            promised = own.get(message.figure)
            if promised is not None:
                message = replace(message, bound=promised.bound, at_most=promised.at_most)
            if message.failed is None and not isfinite(message.value):
                message = replace(message, value=nan, failed=f"the value is {message.value}")
            own[message.figure] = message
            self.say(f"  {message.figure}: {message.failed or f'{message.value:.4g} {message.unit}'}")
            self._write()

    def fail(self, part: Part, reason: str) -> None:
        """What was promised and has not come has failed for this reason; a part without promises itself."""
        with self._lock:
            own = self.groups.setdefault(part.group, {})
            missing = [own[each.figure] for each in part.promised if own[each.figure].failed]
            for figure in missing:
                own[figure.figure] = replace(figure, failed=reason)
            if not missing:
                own[part.name] = Figure(part.name, nan, "", failed=reason)
            self.say(f"  failed: {part.name}: {reason}")
            self._write()

    @property
    def figures(self) -> list[Figure]:
        """All of them: those with a bound first."""
        every = [figure for group in self.groups.values() for figure in group.values()]
        return sorted(every, key=lambda each: each.bound is None)

    @property
    def limits(self) -> Limits | None:
        """What the machine does at most, once it has been measured."""
        values = {each.figure: each.value for each in self.figures if each.failed is None}
        if not {COPY, READ, MATRIX} <= values.keys():
            return None
        return Limits(bandwidth=max(values[COPY], values[READ]) * 1e9, matrix=values[MATRIX] * 1e12)

    def _write(self) -> None:
        write_figures(self.path, self.figures, PEERS, self.facts)
