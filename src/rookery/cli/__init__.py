"""The command ``rookery VERB``: one module of this package for each verb, imported only when it is used.

A verb's module has

    HELP                    what ``rookery VERB --help`` says above the options
    add_arguments(parser)   the options, on an ``argparse.ArgumentParser``
    run(args) -> int        the work; returns the exit status

and imports what is heavy inside functions. Exit status: 0 done, 2 an error the user can mend (one line on
stderr, no traceback), 130 interrupted, 141 nobody reads the output any more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import rookery
from rookery.errors import RookeryError

if TYPE_CHECKING:
    from argparse import ArgumentParser

__all__ = ["EXAMPLES", "VERBS", "help_text", "main", "verb_parser"]

VERBS: dict[str, dict[str, str]] = {
    "Make a model": {
        "demo": "train a small RWKV-7 on Python's own source in minutes, then let it write",
        "train": "train a model on your text: files, folders, JSON lines",
    },
    "Run it": {
        "generate": "continue a prompt, streaming",
        "chat": "talk with a model, in constant memory",
    },
    "Measure it": {
        "compare": "RWKV against attention, LSTM and others: what each learns, remembers, costs",
        "bench": "time to the first token, tokens per second and memory, against context and size",
        "eval": "benchmarks, bits per byte of a text, questions: one table of models",
        "prompts": "the same questions in many orders and formats: which prompt is best, and by how much",
        "look": "a page of what goes on inside a model while it reads a text",
    },
    "Look after files": {
        "inspect": "say what a model file holds: version, sizes, state, tokenizer",
        "convert": "write a model in another format",
        "quantize": "make a model small: 8 or 4 bits a weight",
    },
}
"""Heading -> verb -> what it does, in one line. The verb's module has the verb's name."""

EXAMPLES = (
    ("rookery demo", "watch one learn, no download needed"),
    ("rookery train book.txt --minutes 10 --out runs/book", "from text to a model"),
    ("rookery generate runs/book 'It was a'", "let it write"),
    ("echo 'It was a' | rookery generate runs/book", "in a pipe"),
    ("rookery inspect model.pth", "an official checkpoint"),
)
"""Commands that ``rookery --help`` shows, and what each is for."""

_INTERRUPTED = 130
_BROKEN_PIPE = 141
_USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the console script ``rookery``.

    Args:
        argv: the arguments without the program's name; default those of this process.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _tolerate_any_character()
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end; give it somewhere to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except RookeryError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def help_text(*, color: bool = False) -> str:
    """What ``rookery --help`` prints.

    Args:
        color: with the escape sequences of a terminal.
    """
    bold, dim, cyan, end = ("\033[1m", "\033[2m", "\033[36m", "\033[0m") if color else ("",) * 4
    lines = [
        f"{bold}rookery{end} {rookery.__version__}  RWKV language models: train, generate, chat, convert",
        "",
        f"{bold}Usage{end}",
        "  rookery VERB [options]      rookery VERB --help      rookery --version",
    ]
    for heading, verbs in VERBS.items():
        lines += ["", f"{bold}{heading}{end}"]
        lines += [f"  {cyan}{verb:<10}{end}{summary}" for verb, summary in verbs.items()]
    width = max(len(command) for command, _ in EXAMPLES) + 2
    lines += ["", f"{bold}Examples{end}"]
    lines += [f"  {command:<{width}}{dim}# {comment}{end}" for command, comment in EXAMPLES]
    return "\n".join(lines) + "\n"


def verb_parser(verb: str) -> ArgumentParser:
    """The parser of one verb, whose ``format_help`` is what ``rookery VERB --help`` prints."""
    from argparse import ArgumentParser, RawDescriptionHelpFormatter

    module = import_module(f"rookery.cli.{verb}")
    parser = ArgumentParser(
        prog=f"rookery {verb}",
        description=module.HELP,
        formatter_class=RawDescriptionHelpFormatter,
        # An abbreviation that works today is ambiguous once an option is added.
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [arguments[1], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(help_text(color=_wants_color()))
        return 0 if arguments else _USER_ERROR
    verb, *rest = arguments
    if verb in ("-V", "--version"):
        print(f"rookery {rookery.__version__}")
        return 0
    known = [name for verbs in VERBS.values() for name in verbs]
    if verb not in known:
        return _fail(_unknown(verb, known))
    return _run(verb, rest)


def _run(verb: str, rest: list[str]) -> int:
    parser = verb_parser(verb)
    return import_module(f"rookery.cli.{verb}").run(parser.parse_args(rest))


def _unknown(verb: str, known: list[str]) -> str:
    from difflib import get_close_matches

    kind = "option" if verb.startswith("-") else "verb"
    near = get_close_matches(verb, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the verbs are {', '.join(known)}"
    return f"there is no {kind} '{verb}'; {hint} (rookery --help)"


def _fail(problem: str) -> int:
    print(f"rookery: error: {problem}", file=sys.stderr)
    return _USER_ERROR


def _wants_color() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _tolerate_any_character() -> None:
    # A model writes any character; a terminal of an old encoding shows '?' for what it has not.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
