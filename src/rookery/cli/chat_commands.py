"""The commands of ``rookery chat``: a line that begins with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

from rookery.cli.model_options import SAMPLING_OPTIONS
from rookery.errors import ConfigError

if TYPE_CHECKING:
    from rookery.generate import Chat

__all__ = ["COMMANDS", "Conversations", "Leave", "run_command"]


class Leave(Exception):  # noqa: N818 - it is no error
    """The user wants to leave."""


@dataclass
class Conversations:
    """The present conversation, and those that it was forked from."""

    chat: Chat
    """The one that goes on."""

    name: str
    """Its name."""

    others: dict[str, Chat]
    """The others by their names."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One row of the table."""

    argument: str
    """What follows the name: "" for nothing, in brackets if it may be left out."""

    help: str
    """What it does, in one line."""

    act: Callable[[Conversations, str], str]
    """Does it, with what follows the name, and returns what to say."""


def run_command(conversations: Conversations, line: str) -> str:
    """Do what a line that begins with a slash asks for; returns what to say.

    Raises:
        Leave: by ``/quit``.
        RookeryError: it cannot be done; the conversation is as it was.
    """
    name, _, argument = line[1:].partition(" ")
    argument = argument.strip()
    command = COMMANDS.get(name)
    if command is None:
        raise ConfigError(f"there is no command /{name}; /help lists them (a space before / sends the line)")
    if command.argument == "" and argument:
        raise ConfigError(f"/{name} takes nothing after it, and was given {argument!r}")
    if command.argument and not command.argument.startswith("[") and not argument:
        raise ConfigError(f"/{name} needs {command.argument} after it")
    return command.act(conversations, argument)


def _help(conversations: Conversations, argument: str) -> str:
    rows = [(f"/{name} {command.argument}".rstrip(), command.help) for name, command in COMMANDS.items()]
    width = max(len(left) for left, _ in rows) + 2
    lines = [f"{left:<{width}}{right}" for left, right in rows]
    lines += ["", "Ctrl-C stops an answer, Ctrl-D leaves, Alt-Enter begins a new line of a message."]
    return "\n".join(lines)


def _reset(conversations: Conversations, argument: str) -> str:
    conversations.chat.session.reset()
    return "a new conversation"


def _undo(conversations: Conversations, argument: str) -> str:
    conversations.chat.session.undo()
    return f"the last turn is taken back; {conversations.chat.session.position} tokens are left"


def _fork(conversations: Conversations, argument: str) -> str:
    taken = {conversations.name, *conversations.others}
    name = argument or next(name for name in map(str, count(2)) if name not in taken)
    if name in taken:
        raise ConfigError(f"there is a conversation {name!r} already; /switch {name} goes to it")
    left = conversations.name
    conversations.others[left] = conversations.chat
    conversations.chat, conversations.name = conversations.chat.fork(), name
    return f"goes on as {name!r}; /switch {left} goes back to where it was"


def _switch(conversations: Conversations, argument: str) -> str:
    names = sorted([conversations.name, *conversations.others])
    if argument and argument not in names:
        raise ConfigError(f"there is no conversation {argument!r}; there are {', '.join(names)}")
    if argument and argument != conversations.name:
        conversations.others[conversations.name] = conversations.chat
        conversations.chat, conversations.name = conversations.others.pop(argument), argument
    return f"in {conversations.name!r} of {', '.join(names)}"


def _save(conversations: Conversations, argument: str) -> str:
    conversations.chat.session.save(argument)
    return f"saved to {argument}"


def _load(conversations: Conversations, argument: str) -> str:
    conversations.chat.session.load(argument)
    return f"goes on from {argument}, {conversations.chat.session.position} tokens"


def _quit(conversations: Conversations, argument: str) -> str:
    raise Leave


def _setter(field: str) -> Callable[[Conversations, str], str]:
    def act(conversations: Conversations, argument: str) -> str:
        session = conversations.chat.session
        if argument:
            kind, _, _ = SAMPLING_OPTIONS[field]
            try:
                value = kind(argument)
            except ValueError:
                raise ConfigError(f"{field} must be a number, not {argument!r}") from None
            session.sampling = replace(session.sampling, **{field: value})
            if field == "seed":
                session.reseed(value)
        value = getattr(session.sampling, field)
        return f"{field.replace('_', ' ')}: {'none' if value is None else value}"

    return act


def _sampling_commands() -> dict[str, Command]:
    short = {"temperature": "temp"}
    return {
        short.get(field, field.replace("_", "-")): Command(
            argument=f"[{placeholder}]", help=text, act=_setter(field)
        )
        for field, (_, placeholder, text) in SAMPLING_OPTIONS.items()
    }


COMMANDS: dict[str, Command] = {
    "help": Command(argument="", help="list the commands", act=_help),
    "reset": Command(argument="", help="forget the conversation and begin a new one", act=_reset),
    "undo": Command(argument="", help="take back the last message and its answer", act=_undo),
    "fork": Command(argument="[NAME]", help="go on in a copy; the conversation stays as it is", act=_fork),
    "switch": Command(argument="[NAME]", help="go to another conversation, or list them", act=_switch),
    "save": Command(argument="FILE", help="save the conversation", act=_save),
    "load": Command(argument="FILE", help="go on with a saved conversation", act=_load),
    **_sampling_commands(),
    "quit": Command(argument="", help="leave", act=_quit),
}
"""Name -> command, in the order in which ``/help`` lists them."""
