"""What commands write: a model's text, sizes."""

from __future__ import annotations

import sys

__all__ = ["bytes_text", "interactive", "write_text"]

# Control characters but tab and newline, shown as the pictures that Unicode has of them: what a model writes
# must not move the cursor, colour the screen, or set the clipboard.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)}
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def interactive() -> bool:
    """A person reads and types, rather than a program."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def write_text(piece: str) -> None:
    """Write a piece of a model's text at once; to a file or a pipe exactly, to a terminal safely."""
    sys.stdout.write(piece.translate(_PICTURES) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def bytes_text(count: int) -> str:
    """A number of bytes for people: "1.5 MiB (1,572,864 bytes)"."""
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= scale:
            return f"{count / scale:.1f} {unit} ({count:,} bytes)"
    return f"{count} bytes"
