"""What was computed before an evaluation was stopped: one JSON line for each finished request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rookery.errors import DataError

__all__ = ["RequestCache"]


class RequestCache:
    """Results by request. Lines are added as requests finish, so that a process may end at any moment.

    Args:
        path: the file; None remembers nothing beyond this object.
        setting: what else a result depends on, plain values for JSON: the weights, the number type, the first
            token. Results of other settings in the same file are left alone and not found.

    Raises:
        DataError: the file cannot be read or written.

    Attributes:
        found: requests that ``get`` knew.
    """

    def __init__(self, path: Path | None, setting: Mapping[str, Any]):
        self.found = 0
        self._setting = json.dumps(setting, sort_keys=True)
        self._results: dict[str, Any] = {}
        self._file = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            self._file.seek(0)
            self._read(path, self._file.read())
        except DataError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise DataError(f"{path}: cannot be used: {error.strerror or error}") from error

    def get(self, request: Sequence[Any]) -> Any | None:
        """The result of a request, or None; a request is plain values for JSON."""
        result = self._results.get(self._key(request))
        self.found += result is not None
        return result

    def put(self, request: Sequence[Any], result: Any) -> None:
        """Remember a result that is not None."""
        key = self._key(request)
        self._results[key] = result
        if self._file is not None:
            self._file.write(json.dumps([key, result]).encode() + b"\n")

    def flush(self) -> None:
        """Give what was put to the operating system."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> RequestCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _key(self, request: Sequence[Any]) -> str:
        return hashlib.sha256(json.dumps([self._setting, *request]).encode()).hexdigest()[:32]

    def _read(self, path: Path, data: bytes) -> None:
        # A last line without its end was being written when the process was stopped.
        whole = data.rfind(b"\n") + 1
        assert self._file is not None
        self._file.truncate(whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                key, result = json.loads(line)
                self._results[str(key)] = result
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number}: not a finished request; remove the file to begin anew"
                ) from error
