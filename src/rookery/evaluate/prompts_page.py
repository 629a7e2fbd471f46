"""The page of ``rookery prompts``: which order of document and question a model answers best after."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from rookery.errors import MissingExtraError
from rookery.evaluate import style
from rookery.evaluate.page import Page
from rookery.evaluate.prompts import ORDERS, PromptsResult, put
from rookery.evaluate.questions import RULES, Item

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "prompts_page"]

# Examples on a page, and characters of a text that is shown.
_EXAMPLES = 8
_SHOWN = 400


def prompts_page(name: str, source: str, result: PromptsResult) -> Page:
    """The page, complete.

    Args:
        name: of the model.
        source: of the items.
        result: what it shows.
    """
    page = Page(title="Where should the question stand?", subtitle=f"{name} on {source}")
    best, worst, changed = result.best, result.worst, result.changed()
    page.facts(
        {
            "items": result.items,
            "prompts": len(result.prompts),
            "best score": best.score,
            "worst score": worst.score,
            "answers that the order changed": len(changed),
        }
    )
    page.text(
        f"The best prompt is `{best.format}` with the {_in_words(best.order)}, the worst is `{worst.format}` "
        f"with the {_in_words(worst.order)}. The score of an item is 1 if the choice that is likeliest per "
        "byte is right, and of a free answer the F1 of its words."
    )
    error = statistics.fmean(each.error for each in result.prompts) if result.items > 1 else float("nan")
    if not result.spread > 2 * error:
        page.note(
            f"The spread of {result.spread:.3f} is within two standard errors of a single score ({error:.3f} "
            f"each, over {result.items} items): on this file the prompts cannot be told apart."
        )
    page.heading("By order")
    try:
        page.figure(draw(result), caption="Each dot is a format, each bar the mean of an order over formats.")
    except MissingExtraError as absent:
        # The tables say the same.
        page.note(str(absent))
    page.table(
        ("order", "reads", "mean score"),
        [(order, " ".join(ORDERS[order]), score) for order, score in result.mean_of("order").items()],
        caption="D is the document, Q the question.",
        best={2: "highest"},
    )
    page.heading("By format")
    page.table(("format", "mean score"), list(result.mean_of("format").items()), best={1: "highest"})
    page.heading("Every prompt")
    formats = list(result.mean_of("format"))
    scores = {(each.format, each.order): each.score for each in result.prompts}
    page.table(
        ("order", *formats),
        [
            (order, *(scores[format_name, order] for format_name in formats))
            for order in result.mean_of("order")
        ],
        caption=f"Scores; their standard error is about {error:.3f}." if result.items > 1 else "Scores.",
        best={index + 1: "highest" for index in range(len(formats))},
    )
    page.table(
        ("format", "order", *RULES, "exact match", "F1"),
        [
            (
                each.format,
                " ".join(ORDERS[each.order]),
                *(each.accuracy(rule) for rule in RULES),
                each.exact_match,
                each.f1,
            )
            for each in result.prompts
        ],
        caption="Right choices by log-likelihood: the sum, per token, per byte; and free answers.",
        right=tuple(range(2, 4 + len(RULES))),
        best=dict.fromkeys(range(2, 4 + len(RULES)), "highest"),
    )
    if changed:
        page.heading("Where the order changed the answer")
        for each in changed[:_EXAMPLES]:
            page.heading(each.item.name, level=3)
            page.text(_cut(each.item.context))
            page.text(_cut(each.item.question))
            page.table(
                ("order", "answer", "right"),
                [
                    (each.right, ", ".join(each.item.answers), "yes"),
                    (each.wrong, each.said or "(nothing)", "no"),
                ],
                caption=f"format {each.format}",
            )
        if len(changed) > _EXAMPLES:
            page.text(f"And {len(changed) - _EXAMPLES} more, which the JSON names.")
    page.heading("The prompts themselves")
    for format_name in dict.fromkeys(each.format for each in result.prompts):
        made = put(Item("", "DOCUMENT", "QUESTION", (), ("",)), format_name, next(iter(ORDERS)))
        page.text(f"{format_name}: `{made.text + made.before}ANSWER`".replace("\n", "↵"))
    if result.skipped:
        page.heading("Skipped")
        page.table(("item", "reason"), [(each["item"], each["reason"]) for each in result.skipped])
    return page


def draw(result: PromptsResult) -> Figure:
    """Scores by order, a dot for each format."""
    means = result.mean_of("order")
    formats = list(result.mean_of("format"))
    with style.context():
        figure, grid = style.new_figure(height=0.9 + 0.5 * len(means))
        axes = grid[0, 0]
        for row, (order, mean) in enumerate(means.items()):
            axes.barh(row, mean, height=0.62, color=style.GRID, zorder=1)
            for index, format_name in enumerate(formats):
                score = next(p.score for p in result.prompts if (p.format, p.order) == (format_name, order))
                place = row + 0.12 * (index - (len(formats) - 1) / 2)
                label = format_name if row == 0 else None
                axes.plot(score, place, "o", color=style.SERIES[index], markersize=6, label=label, zorder=3)
        axes.set_yticks(range(len(means)), list(means))
        axes.invert_yaxis()
        axes.set_xlabel("score")
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        style.legend(axes, outside=True)
    return figure


def _in_words(order: str) -> str:
    return order if order.startswith(("question", "document")) else f"question on {order}"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
