"""A whole comparison, from its options to its page."""

from __future__ import annotations

import os
import platform
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rookery.errors import ConfigError
from rookery.evaluate.compare.cells import (
    STAGES,
    CompareFolder,
    Kind,
    Result,
    cells_of,
    read_json,
    write_json,
)
from rookery.evaluate.compare.config import CompareConfig, DataSet
from rookery.evaluate.compare.display import CompareReporter, SilentReporter
from rookery.evaluate.compare.models import check_mixers, make_model
from rookery.evaluate.compare.plan import Plan, make_plan
from rookery.evaluate.compare.report import write_report
from rookery.evaluate.compare.text import Texts, context_windows
from rookery.evaluate.compare.workers import CellJob, run_cells
from rookery.evaluate.machine import processor
from rookery.evaluate.tasks import TASKS
from rookery.train.config import TrainConfig
from rookery.train.corpus import choose_tokenizer, read_corpus
from rookery.train.data import TrainingOrder
from rookery.train.signals import StopSignals

__all__ = ["CompareResult", "compare", "resume"]


@dataclass(frozen=True, kw_only=True)
class CompareResult:
    """How a comparison ended."""

    folder: Path
    page: Path
    """The page, of what there is."""
    interrupted: signal.Signals | None
    """The signal that ended it before all was done; what was begun is saved."""
    missing: int
    """Cells that are not done."""


def compare(
    config: CompareConfig, out: str | Path, *, reporter: CompareReporter | None = None
) -> CompareResult:
    """Make a comparison in a new folder.

    Raises:
        ConfigError: options that do not fit together, a mixer that does not exist, or a folder that is in
        use. DataError: data that cannot be used.
    """
    folder = CompareFolder(Path(out))
    check_mixers(config.mixers)
    if folder.config.exists():
        folder.open(config, resume=False)
    # Before there is a folder: whatever cannot be done is said at once.
    for mixer in config.mixers:
        for name in config.tasks:
            make_model(config, mixer, TASKS[name].vocab_size, seed=0, task=True)
    corpora = {data.name: _read(config, data) for data in config.data}
    sizes = {corpus.tokenizer.vocab_size for corpus in corpora.values()} or {256}
    for mixer in config.mixers:
        for vocab_size in sizes:
            make_model(config, mixer, vocab_size, seed=0)
    folder.open(config, resume=False)
    folder.work.mkdir(exist_ok=True)
    for name, corpus in corpora.items():
        Texts.save(folder.tokens_path(name), corpus.training, corpus.validation, corpus.tokenizer.to_spec())
    write_json(folder.path / "machine.json", _machine(config))
    return _run(folder, config, reporter or SilentReporter())


def resume(
    out: str | Path, *, config: CompareConfig | None = None, reporter: CompareReporter | None = None
) -> CompareResult:
    """Go on with a comparison that was stopped: do the cells that are missing, from their last checkpoints.

    Cells that failed are tried again. Where nothing is missing, tables, plots and page are written anew.

    Args:
        config: if given, must be that of the run.

    Raises:
        ConfigError: there is no comparison in the folder, or it has other options.
    """
    folder = CompareFolder(Path(out))
    found = folder.read_config()
    folder.open(found if config is None else config, resume=True)
    check_mixers(found.mixers)
    lost = [data.name for data in found.data if not folder.tokens_path(data.name).exists()]
    if lost and any(folder.result(cell) is None for cell in cells_of(found)):
        raise ConfigError(f"{folder.tokens_path(lost[0])}: this file is missing; start the comparison anew")
    return _run(folder, found, reporter or SilentReporter())


def _run(folder: CompareFolder, config: CompareConfig, reporter: CompareReporter) -> CompareResult:
    threads = _threads(config)
    with StopSignals() as signals:
        try:
            for kind, title in STAGES.items():
                cells = [cell for cell in cells_of(config) if cell.kind == kind]
                if not cells or signals.stopped:
                    continue
                if kind != "speed" and not folder.plan.exists():
                    _plan(folder, config, reporter, threads=threads)
                _stage(folder, config, kind, title, reporter, signals, threads=threads)
        finally:
            reporter.end()
    missing = sum(not _settled(folder.result(cell)) for cell in cells_of(config))
    write_report(folder, config)
    if not missing:
        shutil.rmtree(folder.work, ignore_errors=True)
    return CompareResult(
        folder=folder.path,
        page=folder.page,
        interrupted=signals.received if missing else None,
        missing=missing,
    )


def _stage(
    folder: CompareFolder,
    config: CompareConfig,
    kind: Kind,
    title: str,
    reporter: CompareReporter,
    signals: StopSignals,
    *,
    threads: int,
) -> None:
    todo = [cell for cell in cells_of(config) if cell.kind == kind and not _settled(folder.result(cell))]
    if not todo:
        return
    for cell in todo:
        # Of a cell that failed before.
        folder.result_path(cell).unlink(missing_ok=True)
    everything = list(cells_of(config))
    later = [cell for cell in everything if not _settled(folder.result(cell))]
    expected = read_json(folder.plan)["expected"] if folder.plan.exists() else {}
    reporter.expect(
        {cell.id: expected[cell.id] for cell in later if cell.id in expected},
        done=len(everything) - len(later),
        cells=len(everything),
    )
    reporter.say(f"{title[0].upper()}{title[1:]}: {len(todo)} to do")
    # Tasks are small, and time is not what they are asked about: as many at once as there are cores.
    at_once = threads if kind == "task" else 1
    jobs = [CellJob(cell, folder, 1 if kind == "task" else threads) for cell in todo]
    run_cells(
        jobs,
        at_once=at_once,
        progress=reporter.cell,
        done=reporter.cell_done,
        stopped=lambda: signals.stopped,
    )


def _plan(folder: CompareFolder, config: CompareConfig, reporter: CompareReporter, *, threads: int) -> None:
    speeds: dict[str, Any] = {}
    for cell, result in folder.results(config, "speed"):
        if result["status"] != "done":
            raise ConfigError(f"{cell.mixer} cannot be compared: {result['reason']}")
        speeds[cell.mixer] = result["seconds_per_token"]
    plan = make_plan(config, speeds, threads=threads)
    write_json(folder.plan, plan.to_dict())
    reporter.say(_plan_line(config, plan))


def _plan_line(config: CompareConfig, plan: Plan) -> str:
    parts = []
    if config.data:
        parts.append(f"{plan.text_tokens:,} tokens for each of the models of text")
    if plan.task_tokens:
        low, high = min(plan.task_tokens.values()), max(plan.task_tokens.values())
        parts.append(
            f"{low:,} to {high:,} for those of tasks" if low < high else f"{low:,} for those of tasks"
        )
    minutes = sum(plan.expected.values()) / 60
    return f"The plan: {', '.join(parts) or 'costs alone'}; about {minutes:.0f} minutes"


def _threads(config: CompareConfig) -> int:
    """The cores that this process may use, unless the options say otherwise."""
    allowed = getattr(os, "sched_getaffinity", None)
    return config.threads or (len(allowed(0)) if allowed else os.cpu_count() or 1)


def _settled(result: Result | None) -> bool:
    return result is not None and result["status"] != "failed"


def _read(config: CompareConfig, data: DataSet) -> Any:
    """Read and tokenize a data set, and see that there is enough of it."""
    options = TrainConfig(
        data=(data.path,),
        tokens=1,
        suffix=data.suffix,
        exclude=data.exclude,
        tokenizer=config.tokenizer,
        valid_fraction=config.valid_fraction,
    )
    corpus = read_corpus(options, lambda documents: choose_tokenizer(options, None, documents))
    TrainingOrder(corpus.training, context=config.context, batch=config.batch, seed=0, name=data.name)
    for length in {config.contexts[-1], config.context}:
        context_windows(corpus.validation, length=length, limit=config.valid_tokens, name=data.name)
    return corpus


def _machine(config: CompareConfig) -> dict[str, Any]:
    import torch

    import rookery

    return {
        "rookery": rookery.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": _threads(config),
    }
