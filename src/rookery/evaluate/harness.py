"""Benchmarks of lm-eval with rookery's models: from names of tasks to a table.

    result = run_tasks(model, ["lambada_openai", "piqa"], out="evaluations/model")

Tasks, prompts and metrics are lm-eval's; the likelihoods are ours. Finished requests are kept in the output
folder, so that an evaluation that was stopped goes on where it was. lm-eval's own command takes the model as

    python -m rookery.evaluate.harness run --model rookery --model_args pretrained=model.pth --tasks piqa

which is ``lm_eval`` with the name registered (lm-eval 0.4.13 itself looks for no plug-ins).
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rookery.errors import ConfigError, DataError, require
from rookery.evaluate.cache import RequestCache
from rookery.evaluate.likelihood import Report
from rookery.evaluate.machine import installed_versions
from rookery.files import atomic_write
from rookery.generate import LanguageModel

if TYPE_CHECKING:
    from rookery.evaluate.lm_eval_model import RookeryLM

_NO_PROCESSES = "DISABLE_MULTIPROC"

__all__ = ["TaskResult", "TasksResult", "main", "run_tasks", "write_json"]


@dataclass(frozen=True)
class TaskResult:
    """What one task gave."""

    metrics: dict[str, float]
    """As lm-eval names them: ``acc``, ``acc_stderr``, ``perplexity``, ..."""
    items: int
    """That were scored."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """Items that could not be scored: their number, and the reason."""
    empty_contexts: int = 0
    """Requests whose context is empty, and stands for the first token."""
    source: str = ""
    """The file or the data set."""
    task_version: str = ""
    few_shot: int = 0


@dataclass(frozen=True)
class TasksResult:
    """What an evaluation gave."""

    tasks: dict[str, TaskResult]
    setting: dict[str, Any]
    """The model, the first token, and all else that scores depend on."""
    versions: dict[str, str | None]
    seconds: float
    reused: int
    """Requests that an earlier sitting had finished."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "versions": self.versions,
            "setting": self.setting,
            "seconds": self.seconds,
            "reused_requests": self.reused,
            "tasks": {name: vars(task) for name, task in self.tasks.items()},
        }


def run_tasks(
    model: LanguageModel,
    tasks: Sequence[str],
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    limit: int | None = None,
    few_shot: int | None = None,
    first_token: str | int | None = None,
    add_first_token: bool = False,
    report: Report | None = None,
) -> TasksResult:
    """Evaluate a model on tasks of lm-eval.

    An item that cannot be scored, such as one with a choice that has no tokens, is left out and recorded.

    Args:
        model: with a tokenizer.
        tasks: names of lm-eval's tasks.
        data: a folder with a file TASK.jsonl for each task, in place of the hub.
        out: a folder for ``results.json`` and for finished requests; None keeps nothing.
        limit: most items of each task.
        few_shot: examples before each item, where the task does not fix their number.
        first_token: as for ``choose_first_token``.
        add_first_token: read it before every context, not only before empty ones.
        report: is told how many tokens have been read, and of how many.

    Raises:
        MissingExtraError: lm-eval is not installed.
        ConfigError: there is no such task, or no limit of this kind.
        DataError: a file is missing or has lines with missing fields; or no item can be scored.
        TokenizerError: the model has no tokenizer.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"the limit of items must be 1 or more, not {limit}")
    if not tasks:
        raise ConfigError("no task is named; lambada_openai is one")
    with _quiet():
        require("lm_eval", extra="evaluate", purpose="Evaluating with --tasks")
        from rookery.evaluate import lm_eval_tasks
        from rookery.evaluate.lm_eval_model import RookeryLM, setting

        started = time.perf_counter()
        folder = None if out is None else Path(out)
        lm = RookeryLM(model, first_token=first_token, add_first_token=add_first_token, report=report)
        facts = setting(lm)
        with RequestCache(None if folder is None else folder / "requests.jsonl", facts) as cache:
            lm.cache = cache
            loaded = lm_eval_tasks.load(tasks, data, few_shot=few_shot)
            chosen = {name: _checked(lm, each.task, limit) for name, each in loaded.items()}
            for name, checked in chosen.items():
                if not checked.items:
                    raise DataError(f"task {name}: no item can be scored; {_first_reason(checked)}")
            found = lm_eval_tasks.evaluate(
                lm, loaded, {name: checked.items for name, checked in chosen.items()}
            )
    results = {
        name: TaskResult(
            metrics=_metrics(found["results"][name]),
            items=len(chosen[name].items),
            skipped=chosen[name].skipped,
            empty_contexts=chosen[name].empty_contexts,
            source=loaded[name].source,
            task_version=str(found["versions"].get(name, "")),
            few_shot=int(found["n-shot"].get(name) or 0),
        )
        for name in loaded
    }
    versions = installed_versions(("rookery", "lm_eval", "numpy", "datasets"))
    result = TasksResult(results, facts, versions, time.perf_counter() - started, cache.found)
    if folder is not None:
        write_json(folder / "results.json", result.to_dict())
    return result


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write plain values as JSON, atomically; numbers that are not finite become null.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        with atomic_write(path) as file:
            file.write((json.dumps(_plain(values), indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass
class _Checked:
    """The items of a task that can be scored, by number, and the others."""

    items: list[int] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    empty_contexts: int = 0


def _checked(lm: RookeryLM, task: Any, limit: int | None) -> _Checked:
    """Build the requests of a task and see which can be scored."""
    try:
        task.build_all_requests(limit=limit, rank=0, world_size=1)
    except ValueError as error:
        # Such as more examples than there are items to take them from.
        raise DataError(f"the requests of task {task.config.task} cannot be made: {error}") from error
    reasons: dict[int, str | None] = {}
    checked = _Checked()
    for request in task.instances:
        reasons.setdefault(request.doc_id, None)
        try:
            if request.request_type == "loglikelihood":
                lm.pair(*request.args)
            elif not lm.tok_encode(request.args[0]) and request.request_type == "loglikelihood_rolling":
                raise DataError("the text has no tokens")
        except DataError as error:
            reasons[request.doc_id] = str(error)
        checked.empty_contexts += request.request_type != "loglikelihood_rolling" and not request.args[0]
    for item, reason in sorted(reasons.items()):
        if reason is None:
            checked.items.append(item)
        else:
            checked.skipped.append({"item": item, "reason": reason})
    return checked


def _first_reason(checked: _Checked) -> str:
    return f"item {checked.skipped[0]['item']}: {checked.skipped[0]['reason']}" if checked.skipped else "none"


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """lm-eval's "acc,none" as "acc"; other filters keep their names."""
    found = {}
    for name, value in values.items():
        if isinstance(value, int | float) and "," in name:
            metric, _, filtered = name.partition(",")
            found[metric if filtered == "none" else f"{metric} ({filtered})"] = float(value)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and the advice of lm-eval and what it uses; progress is shown by us."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate")]
    levels = [logger.level for logger in loggers]
    alone = os.environ.get(_NO_PROCESSES)
    # lm-eval would fork a process with running threads, to estimate errors in parallel.
    os.environ[_NO_PROCESSES] = "1"
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        if alone is None:
            del os.environ[_NO_PROCESSES]
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def main(argv: Sequence[str] | None = None) -> None:
    """lm-eval's own command with the model ``rookery`` registered.

    Raises:
        MissingExtraError: lm-eval is not installed.
    """
    require("lm_eval", extra="evaluate", purpose="lm-eval's command")
    from lm_eval.__main__ import cli_evaluate

    import rookery.evaluate.lm_eval_model  # noqa: F401

    if argv is not None:
        sys.argv = ["lm_eval", *argv]
    cli_evaluate()


if __name__ == "__main__":
    main()
