"""Conversations in the official format, in constant memory.

    User: What is a rookery?

    Assistant: A place where birds breed.

    User: ...

Turns are divided by a blank line, so that blank lines inside a message are collapsed. There is no space
after the last colon: the model writes it. An answer ends where the model begins the next turn, or at its
end-of-text token; neither is read, so that the next turn always begins the same way.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from rookery.errors import ConfigError
from rookery.generate.session import Session

__all__ = ["Chat", "ChatTemplate"]

_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How a conversation is written for a model."""

    user: str = "User"
    """Name of the one who asks."""

    assistant: str = "Assistant"
    """Name of the one who answers."""

    system: str = "System"
    """Name under which instructions stand before the first turn."""

    separator: str = "\n\n"
    """Between turns."""

    def __post_init__(self) -> None:
        if not all((self.user, self.assistant, self.system, self.separator)):
            raise ConfigError("a chat template needs names and a separator that are not empty")

    @property
    def stops(self) -> tuple[str, ...]:
        """Where an answer ends: the model begins a turn of either side."""
        return tuple(f"{self.separator}{name}:" for name in (self.user, self.assistant))

    def opening(self, instructions: str) -> str:
        """What stands before the first turn; nothing without instructions."""
        text = self.clean(instructions)
        return f"{self.system}: {text}{self.separator}" if text else ""

    def turn(self, message: str) -> str:
        """One message, up to where the answer begins."""
        return f"{self.user}: {self.clean(message)}{self.separator}{self.assistant}:"

    def clean(self, text: str) -> str:
        """A text without what would end a turn: blank lines, and space at both ends."""
        return _BLANK_LINES.sub("\n", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


class Chat:
    """Turns of a conversation in a session, which alone remembers them.

    Attributes:
        session: the session; ``undo``, ``fork``, ``save`` and ``load`` are its own.
        template: how turns are written.
        instructions: read before the first turn.
    """

    def __init__(self, session: Session, template: ChatTemplate | None = None, *, instructions: str = ""):
        self.session = session
        self.template = ChatTemplate() if template is None else template
        self.instructions = instructions

    def answer(self, message: str, **options: Any) -> Generator[str, None, None]:
        """The answer to a message, in pieces as it comes, without the space that it begins with.

        Penalties count the tokens of this answer alone. Breaking the answer off keeps what came of it.

        Args:
            message: what the user says.
            options: fields of ``SamplingParams`` for this answer; stop strings join those of the template.

        Raises:
            ConfigError: the message is empty, or an option is unknown or out of range.
        """
        if not self.template.clean(message):
            raise ConfigError("the message is empty")
        self.session.feed(self._before(message))
        self.session.forget_penalties()
        stops = options.pop("stop", self.session.sampling.stop)
        return _without_leading_space(self.session.stream(stop=(*self.template.stops, *stops), **options))

    def fork(self) -> Chat:
        """A second conversation that goes on from here by itself."""
        return Chat(self.session.fork(), self.template, instructions=self.instructions)

    def _before(self, message: str) -> str:
        begun = self.session.position > 0
        before = self.template.separator if begun else self.template.opening(self.instructions)
        return before + self.template.turn(message)


def _without_leading_space(pieces: Generator[str, None, None]) -> Generator[str, None, None]:
    leading = True
    with closing(pieces):
        for piece in pieces:
            text = piece.lstrip() if leading else piece
            if text:
                leading = False
                yield text
