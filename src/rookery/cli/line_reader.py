"""Lines from a person at a terminal, or from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from rookery.cli.terminal import interactive
from rookery.errors import DataError

__all__ = ["history_file", "line_reader"]


def line_reader(commands: Mapping[str, str], status: Callable[[], str]) -> Callable[[], str | None]:
    """What gives the next line without its end, or None where there are no more.

    On a terminal with editing, completion, and a history that outlives the process. Alt-Enter begins a new
    line of the same message; Ctrl-C raises KeyboardInterrupt.

    Args:
        commands: those to complete, and what each does.
        status: what stands below the line that is typed.
    """
    return _terminal_reader(commands, status) if interactive() else _piped_line


def history_file() -> Path:
    """Where the lines are kept: in ``$XDG_STATE_HOME``, by default ``~/.local/state``."""
    state = os.environ.get("XDG_STATE_HOME", "")
    # The specification has relative paths ignored.
    folder = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return folder / "rookery" / "chat_history"


def _piped_line() -> str | None:
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 text: {error.reason}") from None
    return line.rstrip("\r\n") if line else None


def _terminal_reader(commands: Mapping[str, str], status: Callable[[], str]) -> Callable[[], str | None]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.styles import Style

    class LastingHistory(FileHistory):
        """One that a full or unplugged disk does not bring down."""

        def store_string(self, string: str) -> None:
            with suppress(OSError):
                super().store_string(string)

    def history() -> History:
        # Without a home or the right to write there, the history ends with the process.
        try:
            path = history_file()
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab"):
                pass
        except (OSError, RuntimeError):
            return InMemoryHistory()
        return LastingHistory(path)

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        history=history(),
        completer=WordCompleter(list(commands), meta_dict=dict(commands), sentence=True),
        key_bindings=keys,
        bottom_toolbar=lambda: [("class:status", f" {status()}")],
        prompt_continuation=lambda width, number, wraps: " " * width,
        reserve_space_for_menu=6,
        style=Style.from_dict(
            {
                "bottom-toolbar": "noreverse",
                "status": "fg:ansibrightblack",
                "prompt": "bold fg:ansicyan",
            }
        ),
    )

    def read() -> str | None:
        try:
            return session.prompt([("class:prompt", "› ")])
        except EOFError:
            return None

    return read
