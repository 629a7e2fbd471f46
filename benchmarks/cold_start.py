"""How long a command takes to answer: from the start of the process to the first byte that it prints.

    python -m benchmarks.cold_start [--types bfloat16 q8 q4] [--rounds N] [--json FILE]

`rookery --help`, and `rookery generate` on an RWKV-7 of 191 million parameters (L12 D768, vocabulary 65536)
with random weights, made for the purpose: bfloat16 as safetensors, 8 and 4 bits as GGUF. What is timed is
Python's start, the imports, loading and packing the weights, encoding the prompt, and one token. The files
are in the page cache.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from benchmarks.report import Figure, add_report_arguments, interleaved, print_figures, write_figures
from rookery import checkpoints
from rookery.config import sized

HELP_BOUND = 0.3
FIRST_TOKEN_BOUND = 1.0


def write_model(folder: Path) -> Path:
    """The bfloat16 model: weights as large as a trained model's, so that its logits are."""
    config = sized("7", vocab_size=65536, width=768, num_layers=12)
    rng = np.random.default_rng(0)
    tensors = {
        name: (rng.standard_normal(shape, dtype=np.float32) * 0.05).astype(ml_dtypes.bfloat16)
        for name, shape in checkpoints.expected_shapes(config).items()
    }
    path = folder / "model.safetensors"
    checkpoints.save(
        checkpoints.Checkpoint(config=config, tensors=tensors, tokenizer={"kind": "world"}), path
    )
    return path


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


def commands(folder: Path, types: list[str]) -> dict[str, list[str]]:
    """What is timed, by the name of its figure."""
    model = write_model(folder)
    files = {"bfloat16": model}
    for kind in types:
        if kind not in files:
            files[kind] = folder / f"{kind}.gguf"
            subprocess.run(
                rookery("quantize", str(model), "--type", kind, "-o", str(files[kind])), check=True
            )
    result = {"rookery --help": rookery("--help")}
    for kind in types:
        # One token of a random model may be a part of a character, which is not printed by itself.
        options = ["The quick brown fox", "--seed", "1", "--max-tokens", "4"]
        result[f"first token, {kind}"] = rookery("generate", str(files[kind]), *options)
    return result


def timed(command: list[str]) -> Callable[[], float]:
    """A side of ``interleaved``."""
    return lambda: first_byte(command)


def main() -> None:
    """Time the commands in turn and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--types", nargs="+", choices=["bfloat16", "q8", "q4"], default=["bfloat16", "q8", "q4"]
    )
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of each command; default: 7")
    add_report_arguments(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sides = {name: timed(each) for name, each in commands(Path(folder), args.types).items()}
        # The first round reads the files into the page cache.
        seconds = interleaved(sides, rounds=args.rounds, warm_up=1)
    figures = [
        Figure(
            name,
            statistics.median(each),
            "s",
            HELP_BOUND if "help" in name else FIRST_TOKEN_BOUND,
            at_most=True,
        )
        for name, each in seconds.items()
    ]
    print_figures("From the command to its first byte, medians", figures)
    write_figures(args.json, figures)


if __name__ == "__main__":
    main()
