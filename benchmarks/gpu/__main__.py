"""The GPU: kernels, training, decoding and prefill, against fla, a GPT, and what the machine can do.

    python -m benchmarks.gpu [--only kernels,training] [--json FILE]
    python -m benchmarks.gpu --floors       what bytes and operations allow; needs no GPU
    python -m benchmarks.gpu --dry-run      all of it in small on a CPU: only to see that it works

One NVIDIA GPU, eight minutes, no network. Bandwidth and matrix rate are measured first; then recurrences
are checked against float64 on fresh random inputs, and all else is timed by the device's events, medians of
turns that alternate with the other side's. Each part runs in a process of its own, with a time of its own:
what goes wrong, as where fla-core 0.6.0 is not installed, is a figure that failed, with the reason, and the
rest goes on. The JSON file is written after each figure.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.gpu.floors import print_floors
from benchmarks.gpu.parts import GROUPS, LIMITS, MINUTES, Part, Stage, stages
from benchmarks.gpu.process import Message, here, in_process
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import H100, Setting
from benchmarks.report import add_report_arguments, print_figures

__all__ = ["main", "run"]

Runner = Callable[[Part, Setting, Callable[[Message], None]], str | None]


def run(
    plan: Sequence[Stage],
    setting: Setting,
    record: Record,
    runner: Runner,
    *,
    minutes: float,
    at_once: int = 1,
) -> None:
    """Run all parts. A stage ends when its share and those before it are over; time that is left goes on.

    Args:
        plan: the stages.
        setting: of all parts; each gets its deadline and the limits with it.
        record: takes what comes.
        runner: runs one part, as `benchmarks.gpu.process` does it.
        minutes: of the whole plan.
        at_once: parts of a stage whose parts may run together.
    """
    end = time.monotonic()
    for stage in plan:
        for part in stage.parts:
            record.promise(part)
    for stage in plan:
        end += stage.seconds * minutes / MINUTES
        with ThreadPoolExecutor(at_once if stage.together else 1) as threads:
            now = replace(setting, deadline=end, limits=record.limits)
            list(threads.map(partial(_run_part, setting=now, record=record, runner=runner), stage.parts))


def _run_part(part: Part, *, setting: Setting, record: Record, runner: Runner) -> None:
    if setting.seconds_left <= 0:
        record.fail(part, "its time was over before it began")
        return
    record.say(f"measuring: {part.name}")
    failed = runner(part, setting, partial(record.take, part))
    if failed is not None:
        record.fail(part, failed)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", type=_groups, default=GROUPS, metavar="GROUP,...", help=", ".join(GROUPS))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of the whole run (default: 8)")
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="of training")
    parser.add_argument("--seed", type=int, default=None, help="of the inputs; by default fresh ones")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, no bounds")
    parser.add_argument("--floors", action="store_true", help="print the floors at the H100's data sheet")
    add_report_arguments(parser)
    options = parser.parse_args()
    if options.floors:
        print_floors(H100)
        return
    if not options.dry_run and not Path("/dev/nvidiactl").exists():
        parser.error("there is no NVIDIA GPU here; --dry-run runs everything in small on the CPU")
    seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    setting = Setting(
        device="cpu" if options.dry_run else "cuda",
        tiny=options.dry_run,
        seed=seed,
        compile=options.compile,
    )
    record = Record(options.json, {"seed": seed, "tiny": setting.tiny, "compile": setting.compile}, _say)
    plan = stages(options.only, setting.shapes, tiny=setting.tiny)
    if setting.tiny:
        # Small enough for one process, where a test sees all of it; Triton's interpreter has no threads.
        run(plan, setting, record, here, minutes=float("inf"))
    else:
        cores = len(os.sched_getaffinity(0))
        run(plan, setting, record, in_process, minutes=options.minutes, at_once=cores)
    tiny = "tiny, on a CPU: no measurement; " if setting.tiny else ""
    for group in (LIMITS, *options.only):
        figures = record.groups.get(group, {}).values()
        print_figures(f"{group} ({tiny}{record.facts.get('device', 'no device')})", list(figures))
    for name, value in record.facts.items():
        print(f"{name}: {value}")
    if any(figure.holds is False for figure in record.figures):
        print("Not all bounds hold.")


def _groups(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    unknown = set(chosen) - set(GROUPS)
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}"
        )
    return chosen


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
