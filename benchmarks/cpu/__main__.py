"""The native engine on this machine, against llama.cpp, the `rwkv` package, and what the machine can do.

    python -m benchmarks.cpu [--parts decode prefill ...] [--json FILE] [--markdown PAGE]

All sides run the same random weights (RWKV-7, 12 layers, 768 wide, vocabulary 65536), in turn, in one run;
ratios are medians of those of single rounds. Nothing is installed: where a peer is absent, its rows are, too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.cpu import llama, measure
from benchmarks.cpu.engines import RWKV_INSTALL, rwkv_installed
from benchmarks.cpu.weights import FULL, TINY, files
from benchmarks.report import Figure, add_report_arguments, print_figures, write_figures, write_markdown
from rookery.native import _engine

PEERS = ("llama-cpp-python", "rwkv")

Part = Callable[[measure.Setting], list[Figure]]

PARTS: dict[str, Part] = {
    "limits": measure.limits,
    "decode": measure.decode,
    "prefill": measure.prefill,
    "streams": measure.streams,
    "rwkv": measure.against_rwkv_package,
    "process": measure.process,
    "training": measure.training,
}


def run(parts: Sequence[str], setting: measure.Setting) -> list[Figure]:
    """The figures of some parts: those with a bound first."""
    figures: list[Figure] = []
    for part in parts:
        setting.say(f"measuring: {part}")
        measured = PARTS[part](setting)
        for figure in measured:
            setting.say(f"  {figure.figure}: {figure.value:.4g} {figure.unit}")
        figures += measured
    return sorted(figures, key=lambda each: each.bound is None)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--threads", type=int, default=_engine.default_threads(), help="of every side")
    parser.add_argument("--rounds", type=int, default=11, help="turns of each side (default: 11)")
    parser.add_argument("--folder", type=Path, help="keep the files of the model here, or find them")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: only to see that all of it works")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="put the table into this page as well")
    add_report_arguments(parser)
    options = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    for peer, present, install in (
        ("llama.cpp", llama.installed(), llama.INSTALL),
        ("the rwkv package", rwkv_installed(), RWKV_INSTALL),
    ):
        if not present:
            say(f"{peer} is not installed, and its rows are left out; to have them: {install}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        setting = measure.Setting(
            files=files(folder, TINY if options.tiny else FULL, say),
            threads=options.threads,
            rounds=options.rounds,
            tiny=options.tiny,
            say=say,
        )
        figures = run(options.parts, setting)
    print_figures(f"The native engine, {_engine.instruction_set()}, {options.threads} threads", figures)
    write_figures(options.json, figures, PEERS)
    if options.markdown is not None:
        write_markdown(options.markdown, figures, PEERS)


if __name__ == "__main__":
    main()
