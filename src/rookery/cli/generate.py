"""``rookery generate``: continue a prompt."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from rookery.cli.model_options import (
    add_model_arguments,
    add_sampling_arguments,
    begin_session,
    load_model,
    speed_line,
)
from rookery.cli.terminal import write_text
from rookery.errors import DataError

if TYPE_CHECKING:
    from rookery.generate import Session

__all__ = ["HELP", "add_arguments", "run"]

HELP = """\
Continue a prompt. The text goes to standard output as it comes, without the prompt.

Without PROMPT it is read from standard input, less one newline at its end; where that is a terminal, the
model begins a new document. With --state and without PROMPT the model goes on where the state was saved."""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the verb."""
    from rookery.generate import SamplingParams

    parser.usage = "%(prog)s MODEL [PROMPT] [options]"
    add_model_arguments(parser)
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="text; - reads standard input")
    add_sampling_arguments(parser, SamplingParams())
    group = parser.add_argument_group("state")
    group.add_argument(
        "--state",
        metavar="FILE",
        help="begin from a saved state, with its sampling options where none are given here",
    )
    group.add_argument("--save-state", metavar="FILE", help="save the state at the end, or on Ctrl-C")
    parser.add_argument("--verbose", action="store_true", help="say on standard error how fast it went")


def run(args: Namespace) -> int:
    """Write the text."""
    from rookery.generate import SamplingParams

    session = begin_session(load_model(args), args, SamplingParams())
    started, read = time.perf_counter(), session.position
    prompt = _prompt(args)
    if prompt:
        session.feed(prompt)
    fed = time.perf_counter()
    read = session.position - read
    try:
        _write(session)
    finally:
        if args.save_state is not None:
            session.save(args.save_state)
    if args.verbose:
        line = speed_line(session, read=read, reading_s=fed - started, writing_s=time.perf_counter() - fed)
        print(line, file=sys.stderr)
    return 0


def _write(session: Session) -> None:
    try:
        for piece in session.stream():
            write_text(piece)
    finally:
        # In a pipe the text is exactly what the model wrote; on a terminal the shell wants a line of its own.
        if sys.stdout.isatty():
            write_text("\n")


def _prompt(args: Namespace) -> str:
    if args.prompt is not None and args.prompt != "-":
        return args.prompt
    if args.prompt is None and (args.state is not None or sys.stdin.isatty()):
        return ""
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the prompt on standard input is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from None
    # `echo prompt |` adds a newline, and a model takes it for the end of a paragraph.
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
