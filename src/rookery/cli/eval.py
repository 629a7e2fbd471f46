"""``rookery eval``: benchmarks, texts and questions."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from rookery.cli.model_options import add_model_arguments, load_model
from rookery.errors import ConfigError

if TYPE_CHECKING:
    from rookery.evaluate.commands import Models

__all__ = ["HELP", "add_arguments", "run"]

HELP = """\
Measure models, one kind of measurement at a time:

  --tasks      benchmarks of lm-eval: lambada_openai, piqa, winogrande, arc_easy, arc_challenge, sciq, ...
  --text       loss, bits per byte and perplexity by position on your own text, beside any hf:MODEL
  --questions  questions with choices or free answers, and texts with a blank, from JSON lines

What is finished is kept in the output folder: stop it at any time, and give the same command to go on."""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the verb."""
    parser.usage = "%(prog)s MODEL [MODEL ...] (--tasks NAMES | --text FILE | --questions FILE) [options]"
    add_model_arguments(parser, several=True)
    what = parser.add_argument_group("what").add_mutually_exclusive_group(required=True)
    what.add_argument("--tasks", metavar="NAMES", help="tasks of lm-eval, with commas between them")
    what.add_argument("--text", metavar="FILE", nargs="+", help="text files, .jsonl files, folders of them")
    what.add_argument("--questions", metavar="FILE", help="JSON lines: question, answer, context, choices")
    parser.add_argument(
        "--first-token",
        metavar="TOKEN",
        help="read where nothing else is: end-of-text, newline or an id; default: end-of-text if known",
    )
    parser.add_argument("--limit", metavar="N", type=int, help="only the first N items (of each task)")
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="evaluations",
        help="results and finished requests, a folder for each model (default: evaluations)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write all results here")
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument("--data", metavar="DIR", help="read TASK.jsonl from here in place of the hub")
    tasks.add_argument("--few-shot", metavar="N", type=int, help="examples before each item")
    tasks.add_argument(
        "--add-first-token", action="store_true", help="read the first token before every context"
    )
    text = parser.add_argument_group("text")
    text.add_argument(
        "--window",
        metavar="N",
        type=int,
        help="tokens to predict from; default: all before, or as many as a rival has positions",
    )
    text.add_argument(
        "--stride", metavar="N", type=int, help="tokens a window moves on by; default: half of it"
    )
    questions = parser.add_argument_group("questions")
    questions.add_argument(
        "--max-tokens", metavar="N", type=int, default=32, help="of a free answer (default: 32)"
    )


def run(args: Namespace) -> int:
    """Measure, and print the table."""
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"the limit of items must be 1 or more, not {args.limit}")
    try:
        _measure(args)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on with what is missing.", file=sys.stderr)
        raise
    return 0


def _measure(args: Namespace) -> None:
    from rookery.evaluate import commands

    models = _models(args)
    if args.text:
        commands.read_texts(
            models,
            args.text,
            window=args.window,
            stride=args.stride,
            first_token=args.first_token,
            out=args.out,
            json_path=args.json,
        )
    elif args.questions:
        commands.answer_questions(
            models,
            args.questions,
            out=args.out,
            first_token=args.first_token,
            max_tokens=args.max_tokens,
            limit=args.limit,
            json_path=args.json,
        )
    else:
        commands.do_tasks(
            models,
            [name for name in args.tasks.split(",") if name],
            out=args.out,
            data=args.data,
            limit=args.limit,
            few_shot=args.few_shot,
            first_token=args.first_token,
            add_first_token=args.add_first_token,
            json_path=args.json,
        )


def _models(args: Namespace) -> Models:
    from rookery.evaluate.commands import Models

    return Models(
        names=tuple(args.model),
        open=lambda name: load_model(Namespace(**{**vars(args), "model": name})),
        device=args.device,
        dtype=args.dtype,
        threads=args.threads,
    )
