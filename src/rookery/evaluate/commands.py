"""What ``rookery eval`` and ``rookery prompts`` do: load, measure, print tables, write files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rookery.errors import ConfigError, require
from rookery.evaluate import summary
from rookery.evaluate.cache import RequestCache
from rookery.evaluate.first_token import choose_first_token
from rookery.evaluate.harness import TasksResult, run_tasks, write_json
from rookery.evaluate.machine import installed_versions
from rookery.evaluate.progress import progress
from rookery.evaluate.prompts import FORMATS, ORDERS, PromptsResult, compare_prompts, write_csv
from rookery.evaluate.prompts_page import prompts_page
from rookery.evaluate.questions import QuestionsResult, ask, read_items
from rookery.evaluate.setting import model_setting
from rookery.evaluate.text import RookeryReader, TextReader, TextResult, measure_text
from rookery.generate import LanguageModel
from rookery.train.documents import read_documents

__all__ = ["Models", "answer_questions", "do_tasks", "read_texts", "try_prompts"]

_RIVAL = "hf:"


@dataclass(frozen=True)
class Models:
    """Models by the names that a person gave, loaded one after the other."""

    names: tuple[str, ...]
    open: Callable[[str], LanguageModel]
    """Loads one of this package."""
    device: str | None = None
    dtype: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            raise ConfigError("a model is named twice")

    def label(self, name: str) -> str:
        """A name for tables: the last part of a path, if that tells the models apart; a rival's as it is."""
        if name.startswith(_RIVAL):
            return name
        parts = [Path(each).name for each in self.names]
        part = Path(name).name
        return part if part and parts.count(part) == 1 else name

    def folder(self, out: str | Path, name: str) -> Path:
        """Where the results of a model go."""
        label = self.label(name)
        plain = label.removeprefix(_RIVAL).strip("./").replace("/", "-")
        return Path(out) / (Path(label).stem if label != name else plain or "model")

    def own(self, purpose: str) -> Sequence[str]:
        """The names, none of which may be a rival's.

        Raises:
            ConfigError: one is ``hf:...``.
        """
        for name in self.names:
            if name.startswith(_RIVAL):
                raise ConfigError(f"{name}: {purpose} takes models of this package; hf: is for --text")
        return self.names

    def reader(self, name: str, first_token: str | int | None) -> TextReader:
        """What measures a text: a model of this package, or ``hf:PATH_OR_NAME``.

        Raises:
            MissingExtraError: transformers or torch is not installed.
        """
        if not name.startswith(_RIVAL):
            return RookeryReader(self.open(name), name=self.label(name), first_token=first_token)
        require("torch", extra="train", purpose="A model of transformers")
        require("transformers", extra="evaluate", purpose="A model of transformers")
        from rookery.evaluate.transformers_model import TransformersReader

        path = name.removeprefix(_RIVAL)
        return TransformersReader(path, device=self.device, dtype=self.dtype, threads=self.threads)


def read_texts(
    models: Models,
    paths: Sequence[str],
    *,
    window: int | None = None,
    stride: int | None = None,
    first_token: str | None = None,
    out: str | Path,
    json_path: str | None = None,
) -> list[TextResult]:
    """Measure models on texts, print the tables, write the JSON."""
    documents = read_documents(paths)
    results = []
    for name in models.names:
        reader = models.reader(name, first_token)
        folder = models.folder(out, name)
        with (
            RequestCache(folder / "requests.jsonl", reader.setting()) as cache,
            progress(f"reading with {models.label(name)}") as report,
        ):
            result = measure_text(reader, documents, window=window, stride=stride, cache=cache, report=report)
        results.append(result)
        write_json(folder / "text.json", {"versions": _versions(), "files": paths, **result.to_dict()})
    summary.show_texts(results)
    if json_path is not None:
        write_json(json_path, {"versions": _versions(), "results": [each.to_dict() for each in results]})
    return results


def do_tasks(
    models: Models,
    tasks: Sequence[str],
    *,
    out: str | Path,
    data: str | None = None,
    limit: int | None = None,
    few_shot: int | None = None,
    first_token: str | None = None,
    add_first_token: bool = False,
    json_path: str | None = None,
) -> dict[str, TasksResult]:
    """Evaluate models on tasks of lm-eval, print the table, write a folder for each."""
    results = {}
    for name in models.own("--tasks"):
        model = models.open(name)
        with progress(f"evaluating {models.label(name)}") as report:
            results[models.label(name)] = run_tasks(
                model,
                tasks,
                data=data,
                out=models.folder(out, name),
                limit=limit,
                few_shot=few_shot,
                first_token=first_token,
                add_first_token=add_first_token,
                report=report,
            )
    summary.show_tasks(results)
    if json_path is not None:
        write_json(json_path, {name: result.to_dict() for name, result in results.items()})
    return results


def answer_questions(
    models: Models,
    path: str,
    *,
    out: str | Path,
    first_token: str | None = None,
    max_tokens: int = 32,
    limit: int | None = None,
    json_path: str | None = None,
) -> dict[str, QuestionsResult]:
    """Ask models the questions of a file, print the table, write a folder for each."""
    items = read_items(path)[:limit]
    results = {}
    for name in models.own("--questions"):
        model = models.open(name)
        folder = models.folder(out, name)
        first = choose_first_token(model, first_token)
        with (
            RequestCache(folder / "requests.jsonl", model_setting(model, first)) as cache,
            progress(f"asking {models.label(name)}") as report,
        ):
            result = ask(
                model, items, first_token=first.id, max_tokens=max_tokens, cache=cache, report=report
            )
        results[models.label(name)] = result
        write_json(folder / "questions.json", {"versions": _versions(), "file": path, **result.to_dict()})
    summary.show_questions(results)
    if json_path is not None:
        write_json(json_path, {name: result.to_dict() for name, result in results.items()})
    return results


def try_prompts(
    models: Models,
    path: str,
    *,
    out: str | Path,
    formats: Sequence[str] = (),
    orders: Sequence[str] = (),
    first_token: str | None = None,
    max_tokens: int = 32,
    limit: int | None = None,
) -> PromptsResult:
    """Ask a model the questions of a file under many prompts; print the table, write JSON, CSV and a page."""
    items = read_items(path)[:limit]
    [name] = models.own("rookery prompts")
    model = models.open(name)
    folder = Path(out)
    first = choose_first_token(model, first_token)
    with (
        RequestCache(folder / "requests.jsonl", model_setting(model, first)) as cache,
        progress(f"asking {models.label(name)}") as report,
    ):
        result = compare_prompts(
            model,
            items,
            formats=formats or tuple(FORMATS),
            orders=orders or tuple(ORDERS),
            first_token=first.id,
            max_tokens=max_tokens,
            cache=cache,
            report=report,
        )
    write_json(folder / "prompts.json", {"versions": _versions(), "file": path, **result.to_dict()})
    write_csv(folder / "prompts.csv", result)
    prompts_page(models.label(name), Path(path).name, result).write(folder / "prompts.html")
    summary.show_prompts(result)
    return result


def _versions() -> dict[str, str | None]:
    return installed_versions(("rookery", "numpy"))
