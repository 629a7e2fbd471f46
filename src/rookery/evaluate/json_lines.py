"""JSON lines whose fields are checked: what is wrong is said with file, line and field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rookery.errors import DataError

__all__ = ["Line", "read_lines"]


@dataclass(frozen=True)
class Line:
    """One object of a file."""

    path: Path
    number: int
    """From 1."""
    fields: dict[str, Any]

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.path}, line {self.number}"

    def require(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """A field of one of some types.

        Raises:
            DataError: it is missing or of another type.
        """
        if self.fields.get(name) is None:
            has = ", ".join(map(repr, self.fields)) or "no fields"
            raise DataError(f"{self.where}: the field {name!r} is missing; it has {has}")
        value = self.fields[name]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        # True is an int to Python, and no number to people.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(_WORDS.get(each, each.__name__) for each in kinds)
            got = _WORDS.get(type(value), type(value).__name__)
            raise DataError(f"{self.where}: the field {name!r} must be {wanted}, not {got}")
        return value


_WORDS: Mapping[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def read_lines(path: str | Path) -> list[Line]:
    """The objects of a file, empty lines left out.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or has a line that is no JSON object, or none.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    lines = []
    # Not splitlines(): JSON strings may hold U+2028 and the like as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: broken JSON: {error}") from error
        if not isinstance(fields, dict):
            raise DataError(
                f"{path}, line {number}: expected an object, not {_WORDS.get(type(fields), 'null')}"
            )
        lines.append(Line(path, number, fields))
    if not lines:
        raise DataError(f"{path}: empty: there are no items in it")
    return lines
