"""``rookery quantize``: the same model in 8 or 4 bits."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from rookery.cli.terminal import bytes_text
from rookery.errors import CheckpointError

if TYPE_CHECKING:
    from rookery.checkpoints import Checkpoint
    from rookery.native.quantize import Converted

__all__ = ["HELP", "add_arguments", "run"]

HELP = """\
Write a model with its matrices in blocks of 8-bit (q8) or 4-bit integers (q4), as a GGUF file: about a
quarter, or a sixth, of float32's size. Files of RWKV-6 and 7 run in llama.cpp as well. In q4 files the
embedding and the low-rank matrices have 8 bits."""

# rookery.native.quantize.TYPES, written out so that help needs no numpy; a test holds them together.
_TYPES = ("q8", "q4")


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the verb."""
    parser.usage = "%(prog)s MODEL --type q8|q4 -o OUT.gguf"
    parser.add_argument(
        "model", metavar="MODEL", help="a .pth, .safetensors, .gguf or rwkv.cpp .bin file, or a folder"
    )
    parser.add_argument("--type", choices=_TYPES, required=True, help="bits of the matrices")
    parser.add_argument("-o", "--output", metavar="OUT.gguf", required=True, help="the file to write")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")


def run(args: Namespace) -> int:
    """Quantize one checkpoint."""
    from rookery.checkpoints import load, save
    from rookery.native.quantize import quantize

    output = Path(args.output)
    if output.suffix != ".gguf":
        raise CheckpointError(output, "has another suffix than .gguf, the format of quantized models")
    checkpoint = load(args.model)
    done: list[Converted] = []

    def report(converted: Converted) -> None:
        done.append(converted)
        if sys.stderr.isatty():
            print(f"\r{len(done)} of {len(checkpoint.tensors)} tensors", end="", file=sys.stderr, flush=True)

    try:
        made = quantize(checkpoint, args.type, threads=args.threads, report=report)
        save(made, output)
    finally:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    for line in _lines(output, checkpoint, done):
        print(line)
    return 0


def _lines(output: Path, checkpoint: Checkpoint, done: list[Converted]) -> list[str]:
    parameters = sum(each.size for each in done)
    before = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    after = output.stat().st_size
    lines = [
        f"{output}: RWKV-{checkpoint.config.version}, {parameters:,} parameters",
        f"{bytes_text(after)}, from {bytes_text(before)} of weights",
    ]
    for kind in dict.fromkeys(each.kind for each in sorted(done, key=lambda each: -each.size)):
        parts = [each for each in done if each.kind == kind]
        weights = sum(each.size for each in parts)
        line = f"  {kind:<9}{weights:>15,} weights in {len(parts)} tensors"
        if any(each.error for each in parts):
            error = sqrt(sum(each.size * each.error**2 for each in parts) / weights)
            line += f", off by {100 * error:.2g} %"
        lines.append(line)
    return lines
