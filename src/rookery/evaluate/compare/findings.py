"""What a comparison found: the results of its cells, brought together by mixer."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rookery.evaluate.compare.cells import Cell, CompareFolder, Result, read_json
from rookery.evaluate.compare.config import CompareConfig
from rookery.evaluate.compare.fit import Exponent, fit_exponent

__all__ = ["Findings", "mean", "spread"]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All results that are there, and what follows from them."""

    config: CompareConfig
    plan: dict[str, Any]
    machine: dict[str, Any]
    results: list[tuple[Cell, Result]]

    @classmethod
    def read(cls, folder: CompareFolder, config: CompareConfig) -> Findings:
        """Read a folder.

        Raises:
            DataError: one of its files is broken.
        """
        kinds = ("text", "task", "training", "generation")
        machine = folder.path / "machine.json"
        return cls(
            config=config,
            plan=read_json(folder.plan) if folder.plan.exists() else {},
            machine=read_json(machine) if machine.exists() else {},
            results=[pair for kind in kinds for pair in folder.results(config, kind)],
        )

    def done(self, kind: str, subject: str = "") -> dict[str, list[tuple[Cell, Result]]]:
        """Mixer -> the cells of one kind (and subject) that are done, in the order of the mixers."""
        found = defaultdict(list)
        for cell, result in self.results:
            if cell.kind == kind and cell.subject == subject and result["status"] == "done":
                found[cell.mixer].append((cell, result))
        return {mixer: found[mixer] for mixer in self.config.mixers if mixer in found}

    def not_measured(self) -> list[tuple[str, str]]:
        """What was left out, or failed, or does not apply, and the reason of each."""
        lines = []
        for cell, result in self.results:
            if result["status"] != "done":
                lines.append((cell.id, f"{result['status']}: {result['reason']}"))
            lines += [
                (f"{cell.id}, {'context' if cell.kind == 'text' else 'size'} {length}", reason)
                for length, reason in result.get("not_applicable", {}).items()
            ]
            lines += [
                (f"{cell.id}, after {point['after']} tokens", point["reason"])
                for point in result.get("points", ())
                if point["status"] != "done"
            ]
        return lines

    def points(self, mixer: str) -> list[dict[str, Any]]:
        """Generation of a mixer: the lengths that were measured."""
        [(_, result)] = self.done("generation").get(mixer) or [(None, {"points": []})]
        return [point for point in result["points"] if point["status"] == "done"]

    def training_exponent(self, mixer: str) -> Exponent | None:
        """How the time of a training step of one row grows with its length."""
        rows = [result for _, result in self.done("training").get(mixer, ())]
        return _fit([(row["length"], row["seconds"]) for row in rows])

    def generation_exponent(self, mixer: str) -> Exponent | None:
        """How the time of one more token grows with the number of tokens before it."""
        return _fit([(point["after"], point["seconds"]) for point in self.points(mixer)])

    def state_exponent(self, mixer: str) -> Exponent | None:
        """How the bytes of the state grow with the number of tokens before."""
        return _fit([(point["after"], point["state_bytes"]) for point in self.points(mixer)])

    def tokens_per_second(self, mixer: str) -> float | None:
        """Of training text, all models of the mixer together; None where there are none."""
        results = [
            result for data in self.config.data for _, result in self.done("text", data.name).get(mixer, ())
        ]
        seconds = sum(result["seconds"] for result in results)
        return sum(result["tokens"] for result in results) / seconds if seconds else None


def _fit(points: Sequence[tuple[int, float]]) -> Exponent | None:
    ordered = sorted(points)
    if not ordered:
        return None
    return fit_exponent([length for length, _ in ordered], [cost for _, cost in ordered])


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return statistics.fmean(values)


def spread(values: Sequence[float]) -> str:
    """The mean, and how far the values go from it: "1.234 ± 0.012"; of one value that value alone."""
    middle = statistics.fmean(values)
    if len(values) < 2:
        return f"{middle:.3f}"
    return f"{middle:.3f} ± {max(abs(value - middle) for value in values):.3f}"
