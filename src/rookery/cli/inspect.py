"""``rookery inspect``: what a model file holds."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rookery.cli.terminal import bytes_text

if TYPE_CHECKING:
    from rookery.checkpoints import Checkpoint

__all__ = ["HELP", "add_arguments", "describe", "run"]

HELP = "Say what a model file holds: version, sizes, parameters, state, dtype, tokenizer. Reads no weights."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument(
        "file", metavar="FILE", help="a .pth, .safetensors, .gguf or rwkv.cpp .bin file, or a folder"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument("--check", action="store_true", help="read every weight; refuse NaN and infinity")


def run(args: argparse.Namespace) -> int:
    """Print the description of one checkpoint."""
    from rookery.checkpoints import load

    description = describe(load(args.file, check_finite=args.check))
    if args.json:
        print(json.dumps(description, indent=2))
    elif sys.stdout.isatty():
        _print_table(description)
    else:
        for name, value in _lines(description):
            print(f"{name}: {value}")
    return 0


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What ``--json`` prints: plain values, sizes in numbers and bytes."""
    from rookery.checkpoints import dtype_name
    from rookery.state import state_bytes

    config = checkpoint.config
    dtypes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        name = dtype_name(tensor)
        dtypes[name] = dtypes.get(name, 0) + tensor.size
    fields = {name: value for name, value in config.to_dict().items() if value}
    if config.num_heads:
        fields["num_heads"] = config.num_heads
    return {
        "file": str(checkpoint.path),
        **fields,
        "parameters": sum(dtypes.values()),
        "parameters_by_dtype": dtypes,
        "weight_bytes": sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
        "state_bytes": state_bytes(config),
        "tokenizer": None if checkpoint.tokenizer is None else checkpoint.tokenizer.get("kind"),
    }


# Labels of the fields that only some versions have, in the order of the table.
_RANKS = {
    "mix_rank": "token shift",
    "decay_rank": "decay",
    "iclr_rank": "learning rate",
    "value_rank": "value residual",
    "gate_rank": "gate",
}


def _lines(description: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each row, for people."""
    rows = [
        ("version", f"RWKV-{description['version']}"),
        ("layers", str(description["num_layers"])),
        ("width", _widths(description)),
        ("vocabulary", f"{description['vocab_size']:,}"),
    ]
    if "num_heads" in description:
        rows.insert(3, ("heads", f"{description['num_heads']} of size {description['head_size']}"))
    ranks = [f"{label} {description[name]}" for name, label in _RANKS.items() if name in description]
    if ranks:
        rows.append(("ranks", ", ".join(ranks)))
    by_dtype = description["parameters_by_dtype"]
    dtype = next(iter(by_dtype))
    if len(by_dtype) > 1:
        dtype = ", ".join(f"{name} ({count:,})" for name, count in by_dtype.items())
    return [
        *rows,
        ("parameters", f"{description['parameters']:,} ({_short(description['parameters'])})"),
        ("dtype", dtype),
        ("weights", bytes_text(description["weight_bytes"])),
        ("state", f"{bytes_text(description['state_bytes'])} for one stream, however long"),
        ("tokenizer", description["tokenizer"] or "not in the file"),
    ]


def _widths(description: dict[str, Any]) -> str:
    width, attention = description["width"], description["attention_width"]
    parts = [f"{width:,}", f"channel mixing {description['ffn_width']:,}"]
    if attention != width:
        parts.insert(1, f"time mixing {attention:,}")
    return ", ".join(parts)


def _short(count: int) -> str:
    for scale, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= scale:
            return f"{count / scale:.2f}{letter}"
    return str(count)


def _print_table(description: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(Path(description["file"]).name, style="bold"), box=box.ROUNDED, show_header=False
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, value in _lines(description):
        table.add_row(name, Text(value))
    Console().print(table)
