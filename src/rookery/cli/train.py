"""``rookery train``: a model from text."""

from __future__ import annotations

import shlex
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from rookery.config import PRESETS, VERSIONS
from rookery.errors import ConfigError, require
from rookery.files import shown

if TYPE_CHECKING:
    from rookery.train import TrainResult

__all__ = ["HELP", "add_arguments", "count", "report", "run"]

HELP = """\
Train a model on text: files, .jsonl files (one document in each line), and folders of them.

Learns until the budget (--tokens or --minutes) is spent; Ctrl-C saves and says how to go on. The run folder
gets model.safetensors, which every other command takes and which has the tokenizer in it, metrics.csv and
loss.png."""

_EXAMPLES = """\
examples:
  rookery train book.txt --minutes 10 --out runs/book
  rookery train src/ --suffix .py --preset 0.1B --tokens 1G --bf16
  rookery train chats.jsonl --text-field body --init runs/book --learning-rate 1e-4 --tokens 5M
  rookery train --resume runs/book"""

_SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9}


def count(text: str) -> int:
    """A number of tokens: ``1500000``, ``1500k``, ``1.5M`` or ``2G``.

    Raises:
        ArgumentTypeError: it is not one.
    """
    factor = _SUFFIXES.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    try:
        # The float is for 1.5M alone: it is not exact for large whole numbers.
        number = int(digits) * factor if digits.isdecimal() else round(float(digits) * factor)
    except (ValueError, OverflowError):
        raise ArgumentTypeError(f"{text!r} is not a number of tokens, such as 500000, 500k or 1.5M") from None
    if number < 0:
        raise ArgumentTypeError(f"{text!r} is negative")
    return number


def _rank(text: str) -> tuple[str, int]:
    name, equals, value = text.partition("=")
    if not equals or not value.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not NAME=NUMBER, such as decay=16")
    return f"{name}_rank", int(value)


# Group -> field of TrainConfig -> type, placeholder, help. The defaults are the fields' own.
_OPTIONS: dict[str, dict[str, tuple[Callable[[str], Any], str, str]]] = {
    "budget": {
        "tokens": (count, "N", "tokens to train on; k, M and G are understood"),
        "minutes": (float, "X", "minutes to train for; such a run cannot be repeated bit for bit"),
    },
    "data": {
        "valid_fraction": (
            float,
            "X",
            "part of the data to hold out: whole documents, or the end of one text",
        ),
        "text_field": (str, "NAME", "field of a .jsonl line that holds the text"),
        "tokenizer": (
            str,
            "NAME",
            "bytes, chars, world, or a tokenizer.json; default bytes, or that of --init",
        ),
    },
    "model": {
        "init": (str, "MODEL", "start from this checkpoint in place of a new model"),
        "version": (str, "V", f"generation of a new model: {', '.join(VERSIONS)}"),
        "preset": (str, "SIZE", f"tiny or a published size; RWKV-7 has {', '.join(PRESETS['7'])}"),
        "layers": (int, "N", "blocks"),
        "width": (int, "N", "model width"),
        "head_size": (int, "N", "channels of a head; default 64"),
        "ffn_width": (int, "N", "inner width of channel mixing; default by the recipe"),
    },
    "recipe": {
        "context": (int, "N", "tokens of a row"),
        "batch": (int, "N", "rows of an optimizer step"),
        "accumulate": (int, "N", "micro-batches to split a step's rows into, to save memory"),
        "learning_rate": (float, "X", "peak learning rate"),
        "final_learning_rate": (float, "X", "learning rate at the end of the cosine; default a tenth"),
        "warmup_steps": (int, "N", "steps of warm-up"),
        "weight_decay": (float, "X", "decay of the matrices"),
        "beta1": (float, "X", "AdamW's decay of the mean gradient"),
        "beta2": (float, "X", "AdamW's decay of the mean square"),
        "adam_epsilon": (float, "X", "AdamW's epsilon"),
        "clip": (float, "X", "largest norm of the gradient"),
        "seed": (int, "N", "of the initial weights and of the order of the data"),
    },
    "run": {
        "out": (str, "RUN", "the run folder; default runs/DATE-NAME"),
        "valid_every": (int, "N", "steps between validations; 0: at the end alone"),
        "valid_tokens": (count, "N", "most tokens of a validation during the run; 0: all, as at the end"),
        "save_every": (int, "N", "steps between checkpoints; 0: at the end alone"),
        "device": (str, "D", "auto, cpu or cuda"),
    },
}


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the verb."""
    from rookery.train.config import TrainConfig

    defaults = {field.name: field.default for field in fields(TrainConfig)}
    parser.usage = "%(prog)s DATA... (--tokens N | --minutes X) [options]\n       %(prog)s --resume RUN"
    parser.epilog = _EXAMPLES
    parser.add_argument("data", metavar="DATA", nargs="*", help="text files, .jsonl files and folders")
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted run, exactly")
    groups = {title: parser.add_argument_group(title) for title in _OPTIONS}
    for title, options in _OPTIONS.items():
        for name, (kind, metavar, text) in options.items():
            default = defaults[name]
            shown = "" if default in (None, MISSING) or "default" in text else f" (default {default})"
            # What is not given is not in the namespace, so that defaults are those of TrainConfig alone.
            groups[title].add_argument(
                _flag(name), type=kind, metavar=metavar, default=SUPPRESS, help=text + shown
            )
    data = groups["data"]
    data.add_argument(
        "--valid-data",
        metavar="DATA",
        nargs="+",
        default=SUPPRESS,
        help="validate on these files and folders",
    )
    data.add_argument(
        "--valid-documents",
        action="store_true",
        default=SUPPRESS,
        help="validate on whole documents with one state, not on windows of the context",
    )
    data.add_argument(
        "--suffix", metavar=".EXT", action="append", default=SUPPRESS, help="in folders, read only such files"
    )
    data.add_argument(
        "--exclude",
        metavar="NAME",
        action="append",
        default=SUPPRESS,
        help="in folders, leave out files and folders of this name (* and ? are understood)",
    )
    groups["model"].add_argument(
        "--rank",
        dest="ranks",
        type=_rank,
        metavar="NAME=N",
        action="append",
        default=SUPPRESS,
        help="rank of a low-rank mixing: decay, iclr, value, gate (RWKV-7); mix, decay (RWKV-6)",
    )
    groups["recipe"].add_argument(
        "--no-l2wrap",
        dest="l2wrap",
        action="store_false",
        default=SUPPRESS,
        help="without the recipe's gradient that keeps the largest logits small",
    )
    groups["recipe"].add_argument(
        "--bf16", action="store_true", default=SUPPRESS, help="compute in bfloat16, keep weights in float32"
    )
    groups["run"].add_argument(
        "--recompute",
        action="store_true",
        default=SUPPRESS,
        help="to save memory, compute each block again in the backward pass: a third more work",
    )
    groups["run"].add_argument(
        "--compile",
        action="store_true",
        default=SUPPRESS,
        help="compile the blocks with torch.compile before the first step",
    )
    groups["run"].add_argument(
        "--overwrite", action="store_true", default=SUPPRESS, help="replace the run in the run folder"
    )


def run(args: Namespace) -> int:
    """Train."""
    require("torch", extra="train", purpose="Training")
    from rich.console import Console

    from rookery.train import TrainConfig, resume, train
    from rookery.train.display import make_reporter

    given = vars(args).copy()
    folder = given.pop("resume")
    console = Console()
    if folder is not None:
        extra = [_flag(name) for name, value in given.items() if name != "data" or value]
        if extra:
            raise ConfigError(
                f"a run is resumed with the data and the options that it began with; leave out "
                f"{', '.join(extra).replace('--data', 'DATA')}"
            )
        result = resume(folder, reporter=make_reporter(console))
    else:
        given["ranks"] = dict(given.get("ranks", ()))
        result = train(TrainConfig.from_dict(given), reporter=make_reporter(console))
    return report(result)


def report(result: TrainResult) -> int:
    """Print how a run ended and what to do with it; returns the exit status."""
    run = shlex.quote(shown(result.run))
    if result.interrupted is not None:
        print(f"Stopped and saved after step {result.step}. To go on:\n  rookery train --resume {run}")
        return 128 + result.interrupted
    bits = f" ({result.bits_per_byte:.4f} bits per byte)" if result.bits_per_byte is not None else ""
    print(
        f"Done: {result.tokens:,} tokens in {result.seconds:,.0f} s, "
        f"held-out loss {result.valid_loss:.4f} nats per token{bits}.\n"
        f"  rookery generate {run}"
    )
    return 0


def _flag(name: str) -> str:
    flags = {"ranks": "--rank", "l2wrap": "--no-l2wrap"}
    return flags.get(name, "--" + name.replace("_", "-"))
