"""Malformed input, by the thousand: ``python -m scripts.fuzz gguf --inputs 20000 --seed 0``.

    gguf      broken GGUF files, read, packed, run, and written again
    engine    the native engine: broken checkpoints, tokens, states, requests, matrices, numbers of threads

Nothing may come of them but a RookeryError (of the extension itself, ValueError or TypeError), in bounded
time and memory. Input number i of a seed is always the same: ``--only i`` repeats it. Inputs run in child
processes, so that a crash is one more failure, with its number.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

__all__ = ["TARGETS", "Report", "run"]

_PART = 250
_SECONDS = 30
_ADDRESSES = 8 << 30  # bytes; an engine's arena reserves 256 MB that it does not use
_MEMORY = 1 << 30


@dataclass
class Report:
    """What came of some inputs."""

    inputs: int = 0
    refused: int = 0
    """How many gave a typed error."""

    failures: list[str] = field(default_factory=list)
    """One text for each input that gave something else."""


def _gguf(folder: Path) -> Callable[[np.random.Generator], bool]:
    from scripts.fuzz_targets import GGUFTarget

    return GGUFTarget(folder).one


def _engine(folder: Path) -> Callable[[np.random.Generator], bool]:
    from scripts.fuzz_targets import EngineTarget

    return EngineTarget().one


# Name -> what makes, in a folder, the function that tries one input and says whether it was refused.
TARGETS: dict[str, Callable[[Path], Callable[[np.random.Generator], bool]]] = {
    "gguf": _gguf,
    "engine": _engine,
}


def run(target: str, *, inputs: int, seed: int, first: int = 0) -> Report:
    """Try the inputs number ``first`` to ``first + inputs`` of a seed."""
    report = Report()
    # Children that are forked have no threads of the engine yet: this process never calls it.
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="rookery-fuzz-") as folder:
        place, end = first, first + inputs
        while place < end:
            stop = min(place + _PART, end)
            current = context.Value("q", place)
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(
                target=_child, args=(target, Path(folder), seed, place, stop, current, sender)
            )
            child.start()
            sender.close()
            whole = False
            while True:
                try:
                    message = receiver.recv()
                except EOFError:
                    break
                if isinstance(message, int):
                    report.refused, whole = report.refused + message, True
                else:
                    report.failures.append(message)
            child.join()
            last = stop - 1 if whole else current.value
            if not whole:
                report.failures.append(f"input {last}: the process died ({child.exitcode})")
            report.inputs += last + 1 - place
            place = last + 1
    return report


def _child(target: str, folder: Path, seed: int, first: int, stop: int, current: Any, sender: Any) -> None:
    """Sends the text of each failure, and in the end how many inputs were refused."""
    one = TARGETS[target](folder)
    before = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if "asan" not in os.environ.get("LD_PRELOAD", ""):
        # The address sanitizer reserves more than there is.
        resource.setrlimit(resource.RLIMIT_AS, (_in_use() + _ADDRESSES,) * 2)
    signal.signal(signal.SIGALRM, _too_long)
    refused = 0
    for index in range(first, stop):
        current.value = index
        signal.alarm(_SECONDS)
        try:
            refused += one(np.random.default_rng([seed, index]))
        except Exception:
            sender.send(f"input {index}: {traceback.format_exc(limit=-6)}")
        finally:
            signal.alarm(0)
    grown = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > _MEMORY:
        sender.send(f"inputs {first} to {stop - 1}: took {grown >> 20} MiB of memory")
    sender.send(refused)


def _in_use() -> int:
    """Bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"took more than {_SECONDS} s")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--inputs", type=int, default=2000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--only", type=int, metavar="I", help="one input alone")
    args = parser.parse_args()
    if args.only is not None:
        report = run(args.target, inputs=1, seed=args.seed, first=args.only)
    else:
        report = run(args.target, inputs=args.inputs, seed=args.seed)
    for failure in report.failures[:20]:
        print(failure, file=sys.stderr)
    print(
        f"{args.target}: {report.inputs} inputs, {report.refused} refused, "
        f"{report.inputs - report.refused - len(report.failures)} accepted, {len(report.failures)} failures"
    )
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
