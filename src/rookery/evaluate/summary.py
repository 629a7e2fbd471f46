"""What evaluations found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from rookery.evaluate.harness import TasksResult
from rookery.evaluate.page import number
from rookery.evaluate.prompts import PromptsResult
from rookery.evaluate.questions import RULES, QuestionsResult
from rookery.evaluate.text import TextResult

__all__ = ["show", "show_prompts", "show_questions", "show_tasks", "show_texts"]


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, text: int = 1) -> None:
    """A table on standard output.

    Args:
        title: above it.
        columns: headings.
        rows: values; ``page.number`` shows them.
        text: so many of the first columns hold text; the others stand right-aligned.
    """
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        # Names may be folded, figures may not.
        table.add_column(
            column, justify="left" if index < text else "right", overflow="fold", no_wrap=index >= text
        )
    for row in rows:
        table.add_row(*map(_cell, row))
    console = Console()
    # A file has room for whole lines, and no width.
    (console if console.is_terminal else Console(width=160)).print(table)


def _cell(value: object) -> str:
    # The perplexity of a model that was not trained has 18 digits.
    return f"{value:.3g}" if isinstance(value, float) and 1e7 <= abs(value) < float("inf") else number(value)


def show_tasks(results: Mapping[str, TasksResult]) -> None:
    """One row for each model, task and metric, and what was skipped."""
    rows = []
    for model, result in results.items():
        for task, found in result.tasks.items():
            for metric, value in found.metrics.items():
                if not metric.endswith("_stderr"):
                    error = found.metrics.get(f"{metric}_stderr")
                    rows.append((model, task, metric, value, error, found.items, len(found.skipped)))
    columns = ("model", "task", "metric", "value", "± standard error", "items", "skipped")
    show("Tasks", columns, rows, text=3)
    for model, result in results.items():
        for task, found in result.tasks.items():
            _say_skipped(f"{model}, {task}", [(str(each["item"]), each["reason"]) for each in found.skipped])


def show_texts(results: Sequence[TextResult]) -> None:
    """One row for each model, then perplexity by position, one column for each model."""
    columns = ("model", "bits per byte", "loss", "perplexity", "tokens", "window", "documents", "skipped")
    rows = [
        (
            each.name,
            each.bits_per_byte,
            each.loss,
            each.perplexity,
            each.tokens,
            "all" if each.setting["window"] is None else each.setting["window"],
            each.documents,
            len(each.skipped),
        )
        for each in results
    ]
    show("Text (loss and perplexity are of a model's own tokens; bits per byte compare)", columns, rows)
    begins = sorted({bucket.begin for each in results for bucket in each.buckets})
    by_position = [{bucket.begin: bucket for bucket in each.buckets} for each in results]
    rows = []
    for begin in begins:
        there = [buckets.get(begin) for buckets in by_position]
        end = max(bucket.end for bucket in there if bucket is not None)
        values = [None if bucket is None else bucket.perplexity for bucket in there]
        rows.append((f"{begin:,} to {end - 1:,}", *values))
    show("Perplexity by position in the document", ("tokens", *(each.name for each in results)), rows)
    for each in results:
        _say_skipped(each.name, [(skipped["document"], skipped["reason"]) for skipped in each.skipped])


def show_questions(results: Mapping[str, QuestionsResult]) -> None:
    """One row for each model: choices by each rule, and free answers."""
    columns = ("model", "items", *(f"choices, {rule}" for rule in RULES), "exact match", "F1", "skipped")
    rows = [
        (
            model,
            len(result.answered),
            *(result.accuracy(rule) for rule in RULES),
            result.exact_match,
            result.f1,
            len(result.skipped),
        )
        for model, result in results.items()
    ]
    show("Questions (shares of right answers)", columns, rows)
    for model, result in results.items():
        _say_skipped(model, [(each["item"], each["reason"]) for each in result.skipped])


def show_prompts(result: PromptsResult) -> None:
    """One row for each prompt, the best first; the means by order; and what the order changed."""
    ranked = sorted(result.prompts, key=lambda each: -each.score)
    rows = [list(each.row().values()) for each in ranked]
    names = list(ranked[0].row())
    there = [index for index in range(len(names)) if any(row[index] is not None for row in rows)]
    show(
        f"Prompts, {result.items} items",
        [names[index] for index in there],
        [[row[index] for index in there] for row in rows],
        text=2,
    )
    show("By order, the mean over formats", ("order", "score"), list(result.mean_of("order").items()))
    console = Console()
    best = f"best: {result.best.format}, {result.best.order}; the spread is {result.spread:.3f}"
    changed = result.changed()
    line = f"{best}. The order changed the answer of {len(changed)} of {result.items} items"
    console.print(line, highlight=False, soft_wrap=True)
    for each in changed[:3]:
        line = (
            f"  {each.item.name} ({each.format}): right with {each.right}, with {each.wrong}: {each.said!r}"
        )
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    _say_skipped("this file", [(each["item"], each["reason"]) for each in result.skipped])


def _say_skipped(where: str, skipped: Sequence[tuple[str, str]], most: int = 5) -> None:
    console = Console()
    for name, reason in skipped[:most]:
        line = f"skipped in {where}: item {name}: {reason}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if len(skipped) > most:
        console.print(f"... and {len(skipped) - most} more; the results name them", highlight=False)
