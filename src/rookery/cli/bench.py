"""``rookery bench``: speed and memory against context and size."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING, Any

from rookery.errors import ConfigError, find, require

if TYPE_CHECKING:
    from rookery.evaluate.bench import Row

__all__ = ["HELP", "add_arguments", "run"]

HELP = """\
Measure time to the first token, tokens per second and peak memory against context and size: of a model, or
of families of models with random weights of the published shapes: rwkv, rwkv6, rwkv5, rwkv4 here, natively
and in torch, and neox (Pythia), opt and bloom in transformers.

Every point runs in a fresh process. The folder gets bench.csv, plots and index.html. The same command
measures what is missing there, so Ctrl-C loses one point at most. What needs too much memory or time is left
out, and the file says why."""

_EXAMPLES = """\
examples:
  rookery bench runs/book --context 128,1024
  rookery bench --family rwkv,neox,opt --sizes 0.1B,160m,125m --context 128,512,2048,8192
  rookery bench --family rwkv --sizes 0.1B,0.4B --backend native --dtype bfloat16,q8"""


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _counts(text: str) -> list[int]:
    try:
        return [int(word[:-1]) * 1024 if word[-1:] in "kK" else int(word) for word in _words(text)]
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no list of lengths, such as 128,1024 or 1k,8k") from None


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the verb."""
    parser.usage = "%(prog)s (MODEL | --family NAMES [--sizes SIZES]) [options]"
    parser.epilog = _EXAMPLES
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a model file or a folder")
    what = parser.add_argument_group("what")
    what.add_argument("--family", metavar="NAMES", type=_words, default=[], help="rwkv,neox,opt,bloom, ...")
    what.add_argument(
        "--sizes", metavar="SIZES", type=_words, default=[], help="published ones: 0.1B,160m,125m"
    )
    what.add_argument(
        "--context",
        metavar="LENGTHS",
        type=_counts,
        default=[128, 512, 2048],
        help="tokens of the prompt; k is 1024 (default 128,512,2048)",
    )
    what.add_argument("--tokens", metavar="N", type=int, default=32, help="to generate after it (default 32)")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--backend", metavar="NAMES", type=_words, default=[], help="native, torch; default: all"
    )
    how.add_argument("--device", metavar="NAMES", type=_words, help="cpu,cuda; default: what there is")
    how.add_argument(
        "--dtype",
        metavar="TYPES",
        type=_words,
        default=[],
        help="float32, bfloat16, float16, natively q8, q4; default: float32, or the file's",
    )
    how.add_argument("--threads", metavar="N", type=int, help="CPU threads; default: the physical cores")
    how.add_argument("--rounds", metavar="N", type=int, default=3, help="medians are of so many (default 3)")
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--limit-s", metavar="X", type=float, default=300.0, help="most seconds of a point (default 300)"
    )
    limits.add_argument(
        "--memory", metavar="GB", type=float, help="most memory of a point; default: 80 %% of what is left"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="FOLDER", default="bench", help="default: bench")
    output.add_argument("--again", action="store_true", help="measure once more what was left out")


def run(args: Namespace) -> int:
    """Measure, write the report."""
    if (args.model is None) == (not args.family):
        raise ConfigError("give a MODEL, or families of models: --family rwkv,neox,opt,bloom")
    if args.model is not None and args.sizes:
        raise ConfigError("--sizes are of families; a MODEL has the size that it has")
    require("matplotlib", extra="train", purpose="Drawing")
    from rookery.evaluate.bench import FAMILIES, points_of_families, points_of_model, run, write_report
    from rookery.evaluate.bench.devices import devices
    from rookery.evaluate.progress import progress
    from rookery.generate.backend import DTYPES

    options = {
        "contexts": args.context,
        "backends": args.backend,
        "devices": args.device or devices(),
        "tokens": args.tokens,
        "threads": _default_threads() if args.threads is None else args.threads,
        "rounds": args.rounds,
    }
    dtypes = [str(DTYPES.get(name, name)) for name in args.dtype]
    if args.model is not None:
        points = points_of_model(args.model, dtypes=dtypes, **options)
    else:
        points = points_of_families(args.family, args.sizes, dtypes=dtypes or ["float32"], **options)
    for point in points:
        if point.backend != "native":
            require("torch", extra="train", purpose=f"Measuring in {point.backend}")
        if point.backend == "transformers":
            title = FAMILIES[point.family].title
            require("transformers", extra="evaluate", purpose=f"Measuring {title}")
    try:
        with progress("measuring") as advance:
            rows = run(
                points,
                args.out,
                limit_s=args.limit_s,
                memory=None if args.memory is None else int(args.memory * 1e9),
                again=args.again,
                tell=_tell,
                advance=advance,
            )
    except KeyboardInterrupt:
        print("Stopped. The same command measures what is missing.", file=sys.stderr)
        raise
    print(os.path.relpath(write_report(rows, args.out)))
    return 0


def _default_threads() -> int:
    """The native engine's, or all cores where it was not built."""
    engine: Any = find("rookery.native._engine")
    return (os.cpu_count() or 1) if engine is None else engine.default_threads()


def _tell(row: Row) -> None:
    if row.skipped:
        print(f"{row.point}: left out: {row.skipped}", flush=True)
        return
    memory = "" if row.running_bytes is None else f", {row.running_bytes / 1e6:,.0f} MB"
    print(
        f"{row.point}: first token after {row.first_token_s:.3f} s, {row.tokens_per_s:,.1f} tokens/s{memory}",
        flush=True,
    )
