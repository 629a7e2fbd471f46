"""``rookery compare``: RWKV and its rivals at equal parameters, measured and drawn."""

from __future__ import annotations

import shlex
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from rookery.cli.train import count
from rookery.errors import ConfigError, require
from rookery.files import shown

__all__ = ["HELP", "add_arguments", "run"]

HELP = """\
Train several ways of mixing over time (RWKV-4 to 7, attention, LSTM, ...) in the same blocks, at equal
parameters, on the same tokens in the same order; measure what each learns, remembers and costs; and write
tables (CSV), plots (PNG) and one page (index.html) into a folder.

DATA is text files and folders, each a section of the page; "stdlib" is the source of the standard library of
the running Python. --minutes is for everything together: the speed of each mixer is measured first, and all
get equally many tokens. Ctrl-C saves and says how to go on."""

_EXAMPLES = """\
examples:
  rookery compare stdlib tinyshakespeare.txt --minutes 110 --out runs/compare
  rookery compare book.txt --mixers rwkv7,attention --tokens 2M --tasks none --out runs/two
  rookery compare --tasks mqar,parity --no-costs --minutes 10 --out runs/memory
  rookery compare --resume runs/compare
  rookery compare --resume runs/compare --markdown docs/results/compare.md"""


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return () if names == ("none",) else names


def _counts(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(",") if part)


def _short_or_long(text: str) -> int:
    value = count(text)
    if value < 1:
        raise ArgumentTypeError(f"{text!r} must be positive")
    return value


# Group -> field of CompareConfig -> type, placeholder, help. The defaults are the fields' own.
_OPTIONS: dict[str, dict[str, tuple[Callable[[str], Any], str, str]]] = {
    "budget": {
        "minutes": (float, "X", "minutes for everything, dealt out by measured speed"),
        "tokens": (_short_or_long, "N", "in place of minutes: tokens of each model of text, and of a task"),
        "task_tokens": (_short_or_long, "N", "tokens of each model of a task"),
    },
    "models of text": {
        "parameters": (_short_or_long, "N", "of each, within 2 percent"),
        "layers": (int, "N", "blocks"),
        "width": (int, "N", "model width"),
        "seeds": (int, "N", "models of each mixer and text"),
        "tokenizer": (str, "NAME", "bytes or chars"),
        "context": (int, "N", "tokens of a row of training"),
        "batch": (int, "N", "rows of an optimizer step"),
        "learning_rate": (float, "X", "peak learning rate, of all mixers"),
        "warmup_steps": (int, "N", "steps of warm-up, at most a tenth of all"),
        "weight_decay": (float, "X", "decay of the matrices"),
        "valid_fraction": (float, "X", "part of each text to hold out"),
        "contexts": (_counts, "N,N", "contexts that the loss is measured at"),
        "valid_tokens": (count, "N", "most held-out tokens for each of them"),
    },
    "tasks": {
        "task_seeds": (int, "N", "models of each mixer and task"),
        "task_parameters": (_short_or_long, "N", "of each, within 2 percent"),
        "task_layers": (int, "N", "blocks"),
        "task_width": (int, "N", "model width"),
        "task_batch_tokens": (count, "N", "tokens of an optimizer step"),
    },
    "costs": {
        "training_lengths": (_counts, "N,N", "lengths that training is timed at"),
        "generation_lengths": (_counts, "N,N", "numbers of tokens after which generation is timed"),
    },
    "run": {
        "threads": (int, "N", "of torch, and tasks at once; default the cores of this machine"),
    },
}


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the verb."""
    from rookery.evaluate.compare.config import CompareConfig
    from rookery.evaluate.tasks import TASKS

    defaults = {field.name: field.default for field in fields(CompareConfig)}
    parser.usage = (
        "%(prog)s [DATA...] (--minutes X | --tokens N) --out FOLDER [options]\n"
        "       %(prog)s --resume FOLDER [--markdown FILE]"
    )
    parser.epilog = _EXAMPLES
    parser.add_argument("data", metavar="DATA", nargs="*", help="text files and folders to learn, or stdlib")
    parser.add_argument("--out", metavar="FOLDER", help="the folder to write")
    parser.add_argument(
        "--resume", metavar="FOLDER", help="go on with this comparison; write its report anew if it is done"
    )
    parser.add_argument(
        "--markdown", metavar="FILE", help="write the report as Markdown too, with links to the plots"
    )
    parser.add_argument(
        "--mixers", type=_names, metavar="NAMES", default=SUPPRESS, help="with commas between; default all"
    )
    groups = {title: parser.add_argument_group(title) for title in _OPTIONS}
    for title, options in _OPTIONS.items():
        for name, (kind, metavar, text) in options.items():
            default = defaults[name]
            if isinstance(default, tuple):
                default = ",".join(map(str, default))
            about = "" if default in (None, MISSING) or "default" in text else f" (default {default})"
            # What is not given is not in the namespace, so that defaults are those of CompareConfig alone.
            groups[title].add_argument(
                _flag(name), type=kind, metavar=metavar, default=SUPPRESS, help=text + about
            )
    text = groups["models of text"]
    text.add_argument(
        "--suffix", metavar=".EXT", action="append", default=[], help="in folders, read only such files"
    )
    text.add_argument(
        "--exclude",
        metavar="NAME",
        action="append",
        default=[],
        help="in folders, leave out files and folders of this name (* and ? are understood)",
    )
    groups["tasks"].add_argument(
        "--tasks",
        type=_names,
        metavar="NAMES",
        default=SUPPRESS,
        help=f"with commas between, or none; default all: {', '.join(TASKS)}",
    )
    groups["costs"].add_argument(
        "--no-costs",
        dest="costs",
        action="store_false",
        default=SUPPRESS,
        help="leave out time and memory by length",
    )


def run(args: Namespace) -> int:
    """Compare."""
    require("torch", extra="train", purpose="Comparing mixers")
    from rich.console import Console

    from rookery.evaluate.compare import compare, resume
    from rookery.evaluate.compare.cells import CompareFolder
    from rookery.evaluate.compare.display import make_reporter
    from rookery.evaluate.compare.report import exponent_lines, write_markdown

    given = vars(args).copy()
    out, folder, markdown = given.pop("out"), given.pop("resume"), given.pop("markdown")
    if (out is None) == (folder is None):
        raise ConfigError("give one folder: --out for a new comparison, or --resume for one that was begun")
    config = None if folder is not None and not _has_options(given) else _config(given)
    reporter = make_reporter(Console())
    try:
        if folder is not None:
            result = resume(folder, config=config, reporter=reporter)
        else:
            assert config is not None
            result = compare(config, out, reporter=reporter)
    finally:
        reporter.end()
    if markdown is not None:
        write_markdown(CompareFolder(result.folder), Path(markdown))
        print(f"Written: {shown(Path(markdown))}")
    where = shlex.quote(shown(result.folder))
    if result.interrupted is not None:
        print(
            f"Stopped and saved; {result.missing} measurements are missing. To go on:\n"
            f"  rookery compare --resume {where}"
        )
        return 128 + result.interrupted
    for line in exponent_lines(CompareFolder(result.folder)):
        print(line)
    if result.missing:
        print(
            f"{result.missing} measurements failed; the page has the reasons. To try them again: --resume "
            f"{where}"
        )
    print(f"Done: {shown(result.page)}")
    return 0


def _has_options(given: dict[str, Any]) -> bool:
    return any(value for name, value in given.items() if name in ("data", "suffix", "exclude")) or bool(
        given.keys() - {"data", "suffix", "exclude"}
    )


def _config(given: dict[str, Any]) -> Any:
    from rookery.evaluate.compare import CompareConfig, data_set
    from rookery.rivals import MIXERS

    suffix, exclude = tuple(given.pop("suffix")), tuple(given.pop("exclude"))
    given["data"] = tuple(data_set(path, suffix=suffix, exclude=exclude) for path in given["data"])
    options: dict[str, Any] = {"mixers": tuple(MIXERS)} | given
    return CompareConfig(**options)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
