"""The report of a comparison: tables, plots and the page, made from the results that are in its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rookery.errors import ConfigError
from rookery.evaluate.compare import plots
from rookery.evaluate.compare.cells import CompareFolder, cells_of
from rookery.evaluate.compare.config import CompareConfig, DataSet
from rookery.evaluate.compare.findings import Findings, mean, spread
from rookery.evaluate.compare.fit import SPAN, Exponent
from rookery.evaluate.compare.story import Story
from rookery.evaluate.compare.tables import write_tables
from rookery.evaluate.tasks import TASKS, Task
from rookery.files import atomic_write
from rookery.rivals import MIXERS
from rookery.train.display import duration

__all__ = ["exponent_lines", "tell", "write_markdown", "write_report"]

# Reasons of the same kind are many; the CSV file has all of them.
_MOST_REASONS = 12


def write_report(folder: CompareFolder, config: CompareConfig) -> Path:
    """Write the CSV files, the plots and the page, of all results that are there; returns the page."""
    findings = Findings.read(folder, config)
    write_tables(findings, folder.path)
    tell(findings).write_page(folder.page)
    return folder.page


def write_markdown(folder: CompareFolder, path: Path) -> None:
    """Write the report as Markdown, with links to the plots in the folder, relative to the file.

    Raises:
        ConfigError: there is no comparison in the folder, or nothing to put the file into.
    """
    config = folder.read_config()
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: there is no such folder to write {path.name} into")
    pictures = Path(os.path.relpath(folder.path.resolve(), path.parent.resolve())).as_posix()
    with atomic_write(path) as file:
        file.write(tell(Findings.read(folder, config)).markdown(pictures).encode())


def exponent_lines(folder: CompareFolder) -> list[str]:
    """One line for each mixer whose costs were measured: how they grow, and over which lengths."""
    findings = Findings.read(folder, folder.read_config())
    lines = []
    for mixer in findings.config.mixers:
        fits = {
            "training": findings.training_exponent(mixer),
            "a generated token": findings.generation_exponent(mixer),
            "state": findings.state_exponent(mixer),
        }
        known = [f"{what} {_fit(fit)}" for what, fit in fits.items() if fit is not None]
        if known:
            lines.append(f"{MIXERS[mixer].title}: {', '.join(known)}")
    return lines


def tell(findings: Findings) -> Story:
    """The whole report."""
    config = findings.config
    machine = findings.machine
    where = f"{machine.get('processor')}, threads: {machine.get('threads')}, torch {machine.get('torch')}"
    story = Story(
        title="RWKV and its rivals, measured",
        subtitle=f"{len(config.mixers)} ways of mixing over time in the same blocks, at equal parameters, "
        f"on the same tokens in the same order. {where if machine else ''}",
    )
    _overview(story, findings)
    for data in config.data:
        _text(story, findings, data)
    if config.tasks:
        _tasks(story, findings)
    if config.costs:
        _costs(story, findings)
    _left_out(story, findings)
    _method(story, findings)
    return story


def _overview(story: Story, findings: Findings) -> None:
    config, plan = findings.config, findings.plan
    every = [cell for cell in cells_of(config) if cell.kind != "speed"]
    facts: dict[str, object] = {"mixers": len(config.mixers)}
    if config.data:
        facts |= {"parameters of a model of text": config.parameters, "seeds": config.seeds}
        if plan:
            facts["tokens of each"] = plan["text_tokens"]
    if config.tasks:
        facts |= {"parameters of a model of a task": config.task_parameters, "tasks": len(config.tasks)}
    story.facts(facts)
    done = len(findings.results)
    if done < len(every):
        story.note(
            f"This comparison is not finished: {done} of {len(every)} measurements are there. `rookery "
            "compare --resume FOLDER` goes on with it."
        )
    columns, best = ["mixing"], dict[int, Literal["lowest", "highest"]]()
    for data in config.data:
        best[len(columns)] = "lowest"
        columns.append(f"bits/byte, {data.name}")
    columns += ["training tokens/s"] * bool(config.data)
    columns += ["exponent of training", "of a token"] * config.costs
    rows = []
    for mixer in config.mixers:
        row: list[object] = [MIXERS[mixer].title]
        for data in config.data:
            values = _last_bits(findings, data, mixer)
            row.append(mean(values) if values else None)
        if config.data:
            row.append(findings.tokens_per_second(mixer))
        if config.costs:
            row += [
                _power(findings.training_exponent(mixer)),
                _power(findings.generation_exponent(mixer)),
            ]
        rows.append(row)
    if len(columns) > 1:
        right = range(len(columns) - 2, len(columns)) if config.costs else ()
        story.table(
            columns,
            rows,
            caption="In short. Bits per byte: held-out text, read with the training's context of "
            f"{config.context}, mean of the seeds. Exponents: of time by length, fitted over the longest "
            "lengths.",
            best=best,
            right=right,
        )


def _last_bits(findings: Findings, data: DataSet, mixer: str) -> list[float]:
    """Bits per byte at the context of training (or the nearest that was measured), of every seed."""
    wanted = findings.config.context
    return [
        min(result["contexts"], key=lambda point: abs(point["context"] - wanted))["bits_per_byte"]
        for _, result in findings.done("text", data.name).get(mixer, ())
        if result["contexts"]
    ]


def _text(story: Story, findings: Findings, data: DataSet) -> None:
    found = findings.done("text", data.name)
    story.heading(f"Learning {data.name}")
    if not found:
        story.text("Nothing of this was measured.")
        return
    tokens = {result["tokens"] for pairs in found.values() for _, result in pairs}
    tested = {result["tested_tokens"] for pairs in found.values() for _, result in pairs}
    story.text(
        f"Every model was trained once on {max(tokens):,} tokens in rows of {findings.config.context}, and "
        f"tested on {max(tested):,} tokens that no model had seen, the same ones for all."
    )
    contexts = findings.config.contexts
    rows = []
    for mixer, pairs in found.items():
        by_context = {
            context: [p["loss"] for _, r in pairs for p in r["contexts"] if p["context"] == context]
            for context in contexts
        }
        rows.append(
            [
                MIXERS[mixer].title,
                pairs[0][1]["parameters"],
                mean([result["seconds"] for _, result in pairs]),
                *(spread(values) if values else "n/a" for values in by_context.values()),
            ]
        )
    story.table(
        ["mixing", "parameters", "seconds", *(f"context {context}" for context in contexts)],
        rows,
        caption="Held-out loss, nats per token, when the same tokens are read in pieces of each context "
        "that begin with a new state: mean of the seeds, ± the distance of the farthest.",
        right=range(3, 3 + len(contexts)),
    )
    story.picture(
        f"loss-{data.name}.png",
        partial(plots.loss_plot, findings, data.name),
        f"Held-out loss while learning {data.name}, mean of the seeds. Left: by tokens, which are the same "
        "for all. Right: by seconds of training on this machine, validation not counted.",
    )
    story.picture(
        f"context-{data.name}.png",
        partial(plots.context_plot, findings, data.name),
        f"Does longer context help? Left: loss of {data.name} at each position; lower on the right means "
        "that the text before it is used. Right: the same tokens read in shorter and longer pieces. "
        "Beyond the dashed line contexts are longer than in training.",
    )


def _tasks(story: Story, findings: Findings) -> None:
    config = findings.config
    story.heading("Memory and state tracking")
    story.text(
        f"Generated tasks, each with a small vocabulary of its own. Models have {config.task_layers} "
        f"layers, are {config.task_width} wide, have {config.task_parameters:,} parameters within 2 %, and "
        "learn short examples; then they are tested on longer ones, the same for all. What is asked is in "
        "the table of each task, beside what others published: in other sizes and with other budgets, so "
        "that it says what to look for and not which figure to match."
    )
    flat = [name for name in config.tasks if not TASKS[name].depths and findings.done("task", name)]
    if flat:
        story.picture(
            "tasks.png",
            partial(plots.task_plot, findings, flat),
            "Accuracy by size. Shaded: sizes up to the longest that was learnt from. Dashed: guessing.",
        )
    for name in config.tasks:
        task = TASKS[name]
        found = findings.done("task", name)
        if not found:
            continue
        story.heading(task.title, level=3)
        story.text(task.summary)
        if task.depths:
            story.picture(
                f"{name}.png",
                partial(plots.passkey_plot, findings, name),
                "Accuracy in percent by length and depth: 0 is the beginning, 1 the end. On the right of "
                "the dashed line lengths are longer than in training.",
            )
        _task_table(story, findings, task, found)
        if task.known:
            story.table(
                ["published", "source"],
                [(each.result, each.source) for each in task.known],
                caption="Known results",
            )


def _task_table(
    story: Story, findings: Findings, task: Task, found: Mapping[str, Sequence[tuple[Any, dict[str, Any]]]]
) -> None:
    rows = []
    for mixer, pairs in found.items():
        row: list[object] = [MIXERS[mixer].title]
        for size in task.test_sizes:
            values = [s[task.measure] for _, r in pairs for s in r["scores"] if s["size"] == size]
            row.append(100 * mean(values) if values else None)
        rows.append([row[0], *(value if value is None else f"{value:.0f}" for value in row[1:])])
    what = {
        "answers": "answers that are right",
        "last": "last answers that are right",
        "whole": "examples whose answers are all right",
    }[task.measure]
    tokens = max(result["tokens"] for pairs in found.values() for _, result in pairs)
    learnt = ", ".join(map(str, task.train_sizes))
    story.table(
        [
            "mixing",
            *(f"{size} {task.size_name}" if i == 0 else str(size) for i, size in enumerate(task.test_sizes)),
        ],
        rows,
        caption=f"Percent of {what}, by {task.size_name}{', mean of all depths' if task.depths else ''}. "
        f"Learnt from {tokens:,} tokens of {learnt} {task.size_name}; guessing gives "
        f"{100 * task.chance:.2g}.",
        right=range(1, 1 + len(task.test_sizes)),
    )


def _costs(story: Story, findings: Findings) -> None:
    story.heading("Cost by length")
    if findings.done("training"):
        story.picture(
            "training-cost.png",
            partial(plots.training_plot, findings),
            "Training, one row in a step: tokens a second, and the most memory of a step: weights, "
            "gradients and moments, and what a fresh process takes on top for rows of this length.",
        )
    if any(findings.points(mixer) for mixer in findings.config.mixers):
        story.picture(
            "generation-cost.png",
            partial(plots.generation_plot, findings),
            "Generation, one stream: time of one more token, bytes of the state, and memory: the weights, "
            "and what the process has taken on top while it read.",
        )
    rows = []
    for mixer in findings.config.mixers:
        fits = (
            findings.training_exponent(mixer),
            findings.generation_exponent(mixer),
            findings.state_exponent(mixer),
        )
        if any(fits):
            points = findings.points(mixer)
            last = points[-1] if points else {}
            rows.append(
                [
                    MIXERS[mixer].title,
                    *(_fit(fit) for fit in fits),
                    last["state_bytes"] / 1024 if last else None,
                    1e3 * last["seconds"] if last else None,
                    last.get("after"),
                ]
            )
    story.table(
        [
            "mixing",
            "training step",
            "generated token",
            "state",
            "state, KiB",
            "ms/token",
            "after tokens",
        ],
        rows,
        caption="Exponents e of cost = c length^e, by least squares over logarithms, at the longest "
        f"lengths measured down to 1/{SPAN} of the longest (in brackets). 2 is quadratic, 1 is linear, 0 "
        "is constant. On the right: the state and a token after the longest text.",
        right=(1, 2, 3),
    )


def _left_out(story: Story, findings: Findings) -> None:
    reasons = findings.not_measured()
    if not reasons:
        return
    story.heading("What was not measured")
    grouped: dict[str, list[str]] = {}
    for what, reason in reasons:
        grouped.setdefault(reason, []).append(what)
    rows = [(_few(names), reason) for reason, names in list(grouped.items())[:_MOST_REASONS]]
    more = len(grouped) - len(rows)
    story.table(
        ["what", "reason"],
        rows,
        caption="Left out, failed, or not applicable"
        + (f"; {more} more are in not_measured.csv" if more else ""),
    )


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _method(story: Story, findings: Findings) -> None:
    config, plan = findings.config, findings.plan
    story.heading("How it was measured")
    story.text(
        "All models share the blocks, the embedding, the head, the optimizer and its schedule; only the "
        "mixing over time differs. Parameters are counted with embedding and head, and made equal by the "
        f"inner width of channel mixing. One learning rate ({config.learning_rate:g}, cosine to a tenth, "
        f"{config.warmup_steps} steps of warm-up at most) and one weight decay ({config.weight_decay:g}) "
        "serve all: none was tuned for any mixer, and another choice may suit some better."
    )
    if config.data:
        story.text(
            f"Text: {config.layers} layers, {config.width} wide, rows of {config.context} tokens, "
            f"{config.batch} in a step, tokenizer {config.tokenizer}. A seed decides the initial weights "
            "and the order of the rows; the order is the same for all mixers. Seconds are those of the "
            f"optimizer steps alone, with {findings.machine.get('threads', '?')} threads; they measure "
            "these implementations on this machine, of which some are C++ operators and others plain torch."
        )
    if config.minutes is not None and plan:
        whole = sum(plan["expected"].values())
        story.text(
            f"The budget of {config.minutes:g} minutes was dealt out by the speeds measured first: equal "
            f"tokens for all mixers, and not equal time; the whole was expected to take {duration(whole)}. "
            "The speeds and the budgets are in `plan.json`."
        )
    story.text(
        "Peak memory is that of a fresh process for each point, without Python and its libraries. Time of "
        "a step and of a token are medians; a token is timed after the text was read in chunks, with the "
        "state it left. What took longer than its share of the budget is listed as not measured."
    )


def _power(fit: Exponent | None) -> str:
    return "–" if fit is None else _minus(fit.value)


def _fit(fit: Exponent | None) -> str:
    return "–" if fit is None else f"{_minus(fit.value)} ({_tokens(fit.first)}–{_tokens(fit.last)})"


def _minus(value: float) -> str:
    # 0.00 and not -0.00.
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def _tokens(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)
