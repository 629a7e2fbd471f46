"""``rookery prompts``: the same questions under many prompts."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rookery.cli.model_options import add_model_arguments, load_model
from rookery.errors import ConfigError
from rookery.files import shown

__all__ = ["HELP", "add_arguments", "run"]

HELP = """\
Ask the same questions with the question before the document, after it, on both sides of it, with the
document twice; in bare lines, with labels, as an instruction and in the official chat format. Says which
prompt is best, how far they spread, and where the order changed the answer.

FILE has JSON lines: context, question, and choices or an answer (as for rookery eval --questions). The output
folder gets prompts.html, prompts.json, prompts.csv, and what is finished: stop it at any time, and go on."""

# FORMATS and ORDERS of rookery.evaluate.prompts, so that help needs no numpy; a test holds them together.
_FORMATS = ("lines", "labels", "instruction", "chat")
_ORDERS = (
    "question after",
    "question before",
    "both sides",
    "document twice",
    "document twice, question between",
    "question before, document twice",
)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the verb."""
    parser.usage = "%(prog)s MODEL FILE.jsonl [options]"
    add_model_arguments(parser)
    parser.add_argument("file", metavar="FILE.jsonl", help="the questions")
    parser.add_argument("--out", metavar="DIR", default="prompts", help="output folder (default: prompts)")
    parser.add_argument("--limit", metavar="N", type=int, help="only the first N items")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=_FORMATS,
        default=[],
        metavar="FORMAT",
        help=f"of {', '.join(_FORMATS)}",
    )
    parser.add_argument(
        "--orders", nargs="+", choices=_ORDERS, default=[], metavar="ORDER", help=f"of {'; '.join(_ORDERS)}"
    )
    parser.add_argument(
        "--max-tokens", metavar="N", type=int, default=32, help="of a free answer (default: 32)"
    )
    parser.add_argument(
        "--first-token", metavar="TOKEN", help="read before each prompt: end-of-text, newline or an id"
    )


def run(args: Namespace) -> int:
    """Ask, print the table, and say where the page is."""
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"the limit of items must be 1 or more, not {args.limit}")
    from rookery.evaluate import commands

    try:
        commands.try_prompts(
            commands.Models(names=(args.model,), open=lambda name: load_model(args)),
            args.file,
            out=args.out,
            formats=args.formats,
            orders=args.orders,
            first_token=args.first_token,
            max_tokens=args.max_tokens,
            limit=args.limit,
        )
    except KeyboardInterrupt:
        print("Stopped. The same command goes on with what is missing.", file=sys.stderr)
        raise
    print(f"page: {shown(Path(args.out).resolve() / 'prompts.html')}")
    return 0
