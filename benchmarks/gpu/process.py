"""A part in a process of its own: its figures as they come, and why it ended where it did not end well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from math import isfinite, nan
from typing import Any

from benchmarks.gpu.parts import Part
from benchmarks.gpu.setting import Fact, Setting
from benchmarks.report import Figure

__all__ = ["Message", "here", "in_process", "line_of", "messages_of", "reason_of"]

Message = Figure | Fact

# What a process needs to end by itself once its time is over, before it is killed.
_GRACE = 2.0


def here(part: Part, setting: Setting, take: Callable[[Message], None]) -> str | None:
    """Run a part in this process; gives why it failed, or None."""
    module, _, function = part.run.partition(":")
    try:
        for message in getattr(import_module(f"benchmarks.gpu.{module}"), function)(setting, **part.options):
            take(message)
    except Exception as error:
        return reason_of(error)
    return None


def in_process(
    part: Part, setting: Setting, take: Callable[[Message], None], command: Sequence[str] | None = None
) -> str | None:
    """Run a part in a process of its own, until the setting's deadline; gives why it failed, or None.

    Args:
        part: what to run.
        setting: goes to the process with the part's options, as JSON.
        take: gets each figure and fact when it comes.
        command: in place of this module's own; gets the JSON and a file descriptor as its last arguments.
    """
    job = json.dumps({"run": part.run, "options": dict(part.options), "setting": setting.to_dict()})
    command = command or [sys.executable, "-m", "benchmarks.gpu.process"]
    read, write = os.pipe()
    with tempfile.TemporaryFile("w+") as log, os.fdopen(read) as lines:
        process = subprocess.Popen(
            [*command, job, str(write)],
            pass_fds=[write],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | _environment(setting),
            start_new_session=True,  # so that what it starts, such as compilers, ends with it
        )
        os.close(write)
        late = threading.Event()

        def end() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(min(max(0.0, setting.seconds_left + _GRACE), threading.TIMEOUT_MAX), end)
        timer.start()
        try:
            failed = None
            for message in messages_of(lines):
                if isinstance(message, str):
                    failed = message
                else:
                    take(message)
            code = process.wait()
        finally:
            timer.cancel()
            _kill(process)
        if late.is_set():
            return "its time was over"
        if failed is None and code:
            log.seek(0)
            last = log.read().strip().splitlines()[-1:] or [""]
            failed = f"the process ended with {_code(code)}: {last[0]}"[:300]
        return failed


def messages_of(lines: Iterator[str]) -> Iterator[Message | str]:
    """Figures and facts from lines of JSON; a string is why the part failed."""
    for line in lines:
        message = json.loads(line)
        if "failed_part" in message:
            yield message["failed_part"]
        elif "figure" in message:
            yield Figure(**{**message, "value": nan if message["value"] is None else message["value"]})
        else:
            yield Fact(**message)


def line_of(message: Message) -> str:
    """The inverse of `messages_of`; JSON has no nan."""
    values = asdict(message)
    if isinstance(message, Figure) and not isfinite(message.value):
        values |= {"value": None, "failed": message.failed or f"the value is {message.value}"}
    return json.dumps(values)


def _environment(setting: Setting) -> Mapping[str, str]:
    if setting.device == "cpu":
        return {"TRITON_INTERPRET": "1"}
    # Batches of many sizes are tried in one process: pieces that are kept must not stand in the way.
    return {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def _kill(process: subprocess.Popen[Any]) -> None:
    """The process and all it started, where something of it is left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _code(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def main() -> None:
    """The process itself."""
    job, descriptor = json.loads(sys.argv[-2]), int(sys.argv[-1])
    os.set_inheritable(descriptor, False)
    part = Part(name="", group="", run=job["run"], options=job["options"])
    with os.fdopen(descriptor, "w", buffering=1) as out:
        failed = here(part, Setting.from_dict(job["setting"]), lambda each: print(line_of(each), file=out))
        if failed is not None:
            print(json.dumps({"failed_part": failed}), file=out)


if __name__ == "__main__":
    main()
