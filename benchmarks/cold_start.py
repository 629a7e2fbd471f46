"""How long a command takes to answer: from the start of the process to the first byte that it prints.

    python -m benchmarks.cold_start [--types bf16 q8 q4] [--rounds N] [--json FILE]

`rookery --help`, and `rookery generate` on an RWKV-7 of 191 million parameters (L12 D768, vocabulary 65536)
with random weights, made for the purpose, as GGUF. What is timed is Python's start, the imports, loading and
packing the weights, encoding the prompt, and one token. The files are in the page cache.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.cpu.weights import FULL, files
from benchmarks.report import Figure, add_report_arguments, interleaved, print_figures, write_figures

HELP_BOUND = 0.3
FIRST_TOKEN_BOUND = 1.0


def rookery(*arguments: str) -> list[str]:
    """The command, run by this Python."""
    return [sys.executable, "-m", "rookery", *arguments]


def first_byte(command: list[str]) -> float:
    """Seconds until the command prints something.

    Raises:
        RuntimeError: it fails, or prints nothing.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout is not None
        printed = process.stdout.read(1)
        seconds = time.perf_counter() - start
        _, errors = process.communicate()
    if process.returncode != 0 or not printed:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {errors.decode()}")
    return seconds


def measure(models: Mapping[str, Path], *, rounds: int) -> list[Figure]:
    """Median seconds to the first byte of `--help` and of `generate` with each model, by type."""
    commands = {"rookery --help": rookery("--help")}
    for kind, path in models.items():
        # One token of a random model may be a part of a character, which is not printed by itself.
        options = ["The quick brown fox", "--seed", "1", "--max-tokens", "4"]
        commands[f"first token, {kind}"] = rookery("generate", str(path), *options)
    sides = {name: functools.partial(first_byte, command) for name, command in commands.items()}
    # The first round reads the files into the page cache.
    seconds = interleaved(sides, rounds=rounds, warm_up=1)
    return [
        Figure(
            f"cold start, {name}",
            statistics.median(each),
            "s",
            HELP_BOUND if "help" in name else FIRST_TOKEN_BOUND,
            at_most=True,
        )
        for name, each in seconds.items()
    ]


def main() -> None:
    """Time the commands in turn and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = ["bf16", "q8", "q4"]
    parser.add_argument("--types", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of each command; default: 7")
    add_report_arguments(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = files(Path(folder), FULL, print, args.types)
        figures = measure(models, rounds=args.rounds)
    print_figures("From the command to its first byte, medians", figures)
    write_figures(args.json, figures)


if __name__ == "__main__":
    main()
