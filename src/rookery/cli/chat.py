"""``rookery chat``: talk with a model."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from contextlib import closing
from typing import TYPE_CHECKING

from rookery.cli.chat_commands import COMMANDS, Conversations, Leave, run_command
from rookery.cli.line_reader import line_reader
from rookery.cli.model_options import (
    add_model_arguments,
    add_sampling_arguments,
    begin_session,
    load_model,
    speed_line,
)
from rookery.cli.terminal import interactive, write_text
from rookery.errors import RookeryError

if TYPE_CHECKING:
    from rookery.generate import LanguageModel, SamplingParams

__all__ = ["HELP", "add_arguments", "run"]

HELP = """\
Talk with a model. It remembers the whole conversation in a state of constant size.

/help lists the commands: /undo, /fork, /save, /temp, ... Ctrl-C stops an answer, Ctrl-D leaves. Without a
terminal each line of standard input is a message, and standard output has the answers alone."""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the verb."""
    parser.usage = "%(prog)s MODEL [options]"
    add_model_arguments(parser)
    add_sampling_arguments(parser, _defaults())
    group = parser.add_argument_group("conversation")
    group.add_argument("--system", metavar="TEXT", default="", help="instructions before the first message")
    group.add_argument("--state", metavar="FILE", help="go on with a conversation that /save saved")
    group.add_argument("--user", metavar="NAME", default="User", help="your name (default: %(default)s)")
    group.add_argument(
        "--assistant", metavar="NAME", default="Assistant", help="the model's name (default: %(default)s)"
    )
    parser.add_argument("--verbose", action="store_true", help="say after each answer how fast it came")


def run(args: Namespace) -> int:
    """Answer until there is nothing more to answer."""
    from rookery.generate import Chat, ChatTemplate

    model = load_model(args)
    template = ChatTemplate(user=args.user, assistant=args.assistant)
    session = begin_session(model, args, _defaults())
    conversations = Conversations(
        chat=Chat(session, template, instructions=args.system), name="main", others={}
    )
    commands = {f"/{name}": command.help for name, command in COMMANDS.items()}
    next_line = line_reader(commands, lambda: _status(conversations))
    if interactive():
        _greet(model, args.model)
    while True:
        try:
            line = next_line()
            if line is None:
                return 0
            _turn(conversations, line, verbose=args.verbose)
        except Leave:
            return 0
        except KeyboardInterrupt:
            # At a terminal it ends what is being typed or written, never the conversation.
            if not interactive():
                raise


def _defaults() -> SamplingParams:
    from rookery.generate import SamplingParams

    return SamplingParams(max_tokens=1024)


def _turn(conversations: Conversations, line: str, *, verbose: bool) -> None:
    if not line.strip():
        return
    try:
        if line.startswith("/"):
            said = run_command(conversations, line.rstrip())
            _say(said, color="0" if "\n" in said else "2")
        else:
            _answer(conversations, line, verbose=verbose)
    except RookeryError as error:
        _say(f"error: {error}", color="31")


def _answer(conversations: Conversations, message: str, *, verbose: bool) -> None:
    session = conversations.chat.session
    started, before = time.perf_counter(), session.position
    answer = conversations.chat.answer(message)
    fed, read = time.perf_counter(), session.position - before
    try:
        with closing(answer):
            for piece in answer:
                write_text(piece)
    finally:
        write_text("\n\n" if interactive() else "\n")
        if verbose:
            seconds = time.perf_counter() - fed
            _say(speed_line(session, read=read, reading_s=fed - started, writing_s=seconds))


def _say(text: str, *, color: str = "2") -> None:
    if interactive():
        print(f"\033[{color}m{text}\033[0m\n")
    else:
        print(text, file=sys.stderr)


def _greet(model: LanguageModel, path: str) -> None:
    from math import prod

    from rookery.checkpoints import expected_shapes
    from rookery.state import state_bytes

    parameters = sum(prod(shape) for shape in expected_shapes(model.config).values())
    print(
        f"\n\033[1mrookery chat\033[0m  {path}\n"
        f"\033[2mRWKV-{model.config.version}  ·  {parameters / 1e6:,.1f} M parameters  ·  "
        f"{_size(state_bytes(model.config))} of state, however long you talk\n"
        f"/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves\033[0m\n"
    )


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def _status(conversations: Conversations) -> str:
    session = conversations.chat.session
    sampling = session.sampling
    parts = [f"{session.position} tokens", f"temp {sampling.temperature:g}", f"top-p {sampling.top_p:g}"]
    if conversations.others:
        parts.insert(0, conversations.name)
    return "  ·  ".join(parts)
