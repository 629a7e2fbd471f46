"""Tasks of lm-eval, with their data from the hub or from files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import lm_eval.tasks
from jinja2 import Environment, TemplateError, meta
from lm_eval import evaluator

from rookery.errors import ConfigError, DataError
from rookery.evaluate.json_lines import Line, read_lines

__all__ = ["LoadedTask", "evaluate", "load"]

# Where lm-eval keeps these; to look through all of its 14,000 takes most of a minute.
_FOLDERS = {
    "lambada_openai": "lambada",
    "lambada_standard": "lambada",
    "piqa": "piqa",
    "winogrande": "winogrande",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "sciq": "sciq",
    "hellaswag": "hellaswag",
    "openbookqa": "openbookqa",
    "wikitext": "wikitext",
}

Kind = type | tuple[type, ...]

_ARC: dict[str, Kind] = {"question": str, "choices": dict, "answerKey": str}

# What their items must have. Of other tasks, the names in their templates.
_FIELDS: dict[str, dict[str, Kind]] = {
    "lambada_openai": {"text": str},
    "lambada_standard": {"text": str},
    "piqa": {"goal": str, "sol1": str, "sol2": str, "label": int},
    "winogrande": {"sentence": str, "option1": str, "option2": str, "answer": str},
    "arc_easy": _ARC,
    "arc_challenge": _ARC,
    "sciq": dict.fromkeys(
        ("question", "support", "distractor1", "distractor2", "distractor3", "correct_answer"), str
    ),
}

# Other names that a task's file may have.
_FILES = {"lambada_openai": ("lambada_test.jsonl",), "lambada_standard": ("lambada_test.jsonl",)}

_SEED = 1234

# Draws for the standard error of a perplexity: 5 % off it.
_BOOTSTRAPS = 200


@dataclass(frozen=True)
class LoadedTask:
    """A task of lm-eval, and where its items come from."""

    task: Any
    source: str


def load(
    names: Sequence[str], data: str | Path | None, *, few_shot: int | None = None
) -> dict[str, LoadedTask]:
    """The tasks of these names.

    Args:
        names: of single tasks.
        data: a folder with NAME.jsonl for each; None takes the hub.
        few_shot: examples before each item, where the task does not fix their number.

    Raises:
        ConfigError: there is no such task.
        DataError: a file is missing, or has not what the task needs; or the hub cannot be reached.
    """
    manager = _manager(names)
    loaded = {}
    for name in names:
        entry = manager._index.get(name)
        if entry is None or entry.yaml_path is None:
            raise ConfigError(
                f"lm-eval {lm_eval.__version__} has no task {name!r}; `lm_eval ls tasks` lists them"
            )
        overrides: dict[str, Any] = {} if few_shot is None else {"num_fewshot": few_shot}

        def build(entry: Any = entry, overrides: dict[str, Any] = overrides) -> Any:
            return manager._factory.build(entry, overrides=overrides, registry=manager._index)

        if data is None:
            task = _from_the_hub(name, build)
            loaded[name] = LoadedTask(task, str(task.config.dataset_path))
        else:
            path = _file_of(Path(data), name)
            lines = read_lines(path)
            fields = _FIELDS.get(name) or _names_in_templates(manager._factory._load_full_config(entry))
            examples = Path(data) / f"{name}.train.jsonl"
            overrides |= _local(path, lines, fields, examples if examples.is_file() else None)
            loaded[name] = LoadedTask(_from_lines(name, build, lines), path.name)
        loaded[name].task.set_fewshot_seed(_SEED)
    return loaded


def evaluate(lm: Any, loaded: Mapping[str, LoadedTask], items: Mapping[str, list[int]]) -> Mapping[str, Any]:
    """lm-eval's evaluation of some items of each task."""
    for each in loaded.values():
        # Requests were built once to be checked, which has drawn examples.
        each.task.set_fewshot_seed(_SEED)
    tasks: Any = {"tasks": {name: each.task for name, each in loaded.items()}}
    found = evaluator.evaluate(lm, tasks, samples=dict(items), log_samples=False, bootstrap_iters=_BOOTSTRAPS)
    assert found is not None
    return found


def _manager(names: Sequence[str]) -> Any:
    root = Path(lm_eval.tasks.__file__).parent
    if all(name in _FOLDERS for name in names):
        folders: list[str | Path] = [root / _FOLDERS[name] for name in dict.fromkeys(names)]
        return lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    return lm_eval.tasks.TaskManager()


def _file_of(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; it has a file TASK.jsonl for each task")
    candidates = [folder / f"{name}.jsonl", *(folder / other for other in _FILES.get(name, ()))]
    for path in candidates:
        if path.is_file():
            return path
    raise DataError(f"{folder}: task {name} needs the file {' or '.join(path.name for path in candidates)}")


def _local(
    path: Path, lines: Sequence[Line], fields: Mapping[str, Kind], examples: Path | None
) -> dict[str, Any]:
    """What has a task take its items from a file, and its examples from another or the same."""
    splits: Any = {"test": _rows(path, lines, fields)}
    if examples is not None:
        splits["train"] = _rows(examples, read_lines(examples), fields)

    def dataset(**_: Any) -> Any:
        return datasets.DatasetDict(splits)

    return {
        "custom_dataset": dataset,
        "dataset_path": path.name,
        "dataset_kwargs": None,
        "training_split": "train" if examples is not None else None,
        "validation_split": None,
        # Where this is the test split, lm-eval leaves out the item itself.
        "fewshot_split": "train" if examples is not None else "test",
        "test_split": "test",
    }


def _rows(path: Path, lines: Sequence[Line], fields: Mapping[str, Kind]) -> Any:
    for line in lines:
        for name, kind in fields.items():
            line.require(name, kind)
    try:
        return datasets.Dataset.from_list([line.fields for line in lines])
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: its lines are not alike: {_one_line(error)}") from error


def _from_the_hub(name: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except (OSError, ValueError) as error:
        raise DataError(
            f"the data of task {name} cannot be had from the hub: {_one_line(error)}; give a folder of local "
            "files (--data)"
        ) from error


def _from_lines(name: str, build: Callable[[], Any], lines: Sequence[Line]) -> Any:
    """A task whose templates every line can fill."""
    number = 0
    try:
        # lm-eval fills them with the first item when it makes the task.
        task = build()
        for number, doc in enumerate(task.eval_docs):  # noqa: B007
            task.doc_to_text(doc)
            task.doc_to_target(doc)
            if task.config.doc_to_choice is not None:
                task.doc_to_choice(doc)
    except (KeyError, ValueError, TypeError, IndexError, TemplateError) as error:
        raise DataError(f"{lines[number].where}: task {name} cannot read it: {_one_line(error)}") from error
    return task


def _names_in_templates(config: Mapping[str, Any]) -> dict[str, Kind]:
    names: set[str] = set()
    for template in (config.get("doc_to_text"), config.get("doc_to_target"), config.get("doc_to_choice")):
        if isinstance(template, str):
            # Never rendered here: only read for its names.
            names |= meta.find_undeclared_variables(Environment(autoescape=True).parse(template))
    return dict.fromkeys(sorted(names), object)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".strip()
