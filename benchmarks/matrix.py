"""The matrix kernels alone, against what the machine can read and multiply.

    python -m benchmarks.matrix [--types q8 q4] [--tokens 1 16 512] [--json FILE]

Each line multiplies copies of one matrix, together larger than the last cache, with the threads of a model's
step. For a few tokens the limit is the bandwidth of memory, for many the peak of the arithmetic: both are
measured between the repetitions, and the shares are medians of what each repetition reached of the limits
beside it. In layout columns half of the inputs are zero, as in a model with random weights; one token does
not read their weights, and they are not counted.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.report import Figure, add_report_arguments, write_figures
from rookery.native import _engine

# Rows, columns, layout: the matrices of a model 768 wide.
SHAPES = {
    "square": (768, 768, "panels"),
    "key": (3072, 768, "panels"),
    "value": (768, 3072, "columns"),
    "wide": (768, 3072, "panels"),
    "head": (65536, 768, "panels"),
}
PEAKS = {
    "float32": _engine.fp32_peak,
    "bfloat16": _engine.bf16_peak,
    "q8": _engine.int8_peak,
    "q4": _engine.int8_peak,
}


@dataclass(frozen=True)
class Limits:
    """What the machine does in a second: bytes read, operations of one type of weights."""

    bandwidth: float
    peak: float


@dataclass(frozen=True)
class Speed:
    """What one line reached: per second, and as shares of the limits beside it."""

    type: str
    shape: str
    tokens: int
    bandwidth: float
    operations: float
    share_of_bandwidth: float
    share_of_peak: float

    @property
    def name(self) -> str:
        """The line, as figures are called."""
        rows, columns, layout = SHAPES[self.shape]
        return f"{self.type} {rows} x {columns} {layout}, T {self.tokens}"


def measure_limits(kind: str, probe: _engine.ReadProbe, threads: int) -> Limits:
    """The limits at this moment."""
    return Limits(probe.bandwidth(repetitions=3), PEAKS[kind](threads=threads, repetitions=5))


def copies_of(kind: str, shape: str, threads: int, megabytes: int) -> list[_engine.Matrix]:
    """As many copies of one matrix as are `megabytes` together."""
    rows, columns, layout = SHAPES[shape]
    weights = np.random.default_rng(0).standard_normal(rows * columns, np.float32).view(np.uint8)
    arena, copies = _engine.Arena(), []
    while not copies or arena.bytes < megabytes << 20:
        copies.append(
            _engine.Matrix(
                arena,
                weights,
                source="float32",
                rows=rows,
                columns=columns,
                type=kind,
                layout=layout,
                threads=threads,
            )
        )
    return copies


def measure(
    kind: str,
    shape: str,
    token_counts: list[int],
    *,
    probe: _engine.ReadProbe,
    threads: int,
    repeats: int,
    megabytes: int,
) -> list[Speed]:
    """One line for each number of tokens."""
    rows, columns, layout = SHAPES[shape]
    rng = np.random.default_rng(1)
    matrices = copies_of(kind, shape, threads, megabytes)
    speeds = []
    for tokens in token_counts:
        x = rng.standard_normal((tokens, columns)).astype(np.float32)
        if layout == "columns":
            x = np.maximum(x, 0)
        each = _engine.bytes_read(matrices[0], x[0]) if tokens == 1 else matrices[0].bytes
        # A long prompt takes time enough with a few of the copies.
        used = matrices[: max(1, len(matrices) * 16 // tokens)] if tokens > 16 else matrices
        count = len(used)
        seconds, of_bandwidth, of_peak = [], [], []
        operations = 2 * count * rows * columns * tokens
        for _ in range(repeats):
            # The first of two wakes the threads.
            seconds.append(_engine.time_products(used, [x] * count, threads=threads, repetitions=2)[1])
            limits = measure_limits(kind, probe, threads)
            of_bandwidth.append(count * each / seconds[-1] / limits.bandwidth)
            of_peak.append(operations / seconds[-1] / limits.peak)
        median = statistics.median(seconds)
        speeds.append(
            Speed(
                kind,
                shape,
                tokens,
                count * each / median,
                operations / median,
                statistics.median(of_bandwidth),
                statistics.median(of_peak),
            )
        )
    return speeds


def _table(limits: dict[str, Limits]) -> Table:
    bandwidth = next(iter(limits.values())).bandwidth
    peaks = ", ".join(f"{kind} {each.peak / 1e9:,.0f}" for kind, each in limits.items())
    title = f"{_engine.instruction_set()}: {bandwidth / 1e9:.1f} GB/s read; peaks, Gop/s: {peaks}"
    table = Table(title=title, title_justify="left")
    for heading in ("type", "matrix", "laid out"):
        table.add_column(heading, no_wrap=True)
    for heading in ("T", "GB/s", "of read", "Gop/s", "of peak"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--types", nargs="+", choices=list(PEAKS), default=list(PEAKS))
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4, 16, 512])
    parser.add_argument("--threads", type=int, default=_engine.default_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=200, help="of all copies (default: 200)")
    parser.add_argument("--instructions", choices=_engine.available_instruction_sets())
    add_report_arguments(parser)
    options = parser.parse_args()
    if options.instructions:
        _engine.force_instruction_set(options.instructions)
    probe = _engine.ReadProbe(options.megabytes << 20, threads=options.threads)
    table = _table({kind: measure_limits(kind, probe, options.threads) for kind in options.types})
    figures = []
    for kind in options.types:
        for shape in options.shapes:
            rows, columns, layout = SHAPES[shape]
            for speed in measure(
                kind,
                shape,
                options.tokens,
                probe=probe,
                threads=options.threads,
                repeats=options.repeats,
                megabytes=options.megabytes,
            ):
                table.add_row(
                    kind,
                    f"{rows} x {columns}",
                    layout,
                    str(speed.tokens),
                    f"{speed.bandwidth / 1e9:.1f}",
                    f"{speed.share_of_bandwidth:.2f}",
                    f"{speed.operations / 1e9:,.0f}",
                    f"{speed.share_of_peak:.2f}",
                )
                figures.append(Figure(f"{speed.name}, of read bandwidth", speed.share_of_bandwidth, "ratio"))
                figures.append(Figure(f"{speed.name}, of peak", speed.share_of_peak, "ratio"))
        table.add_section()
    Console().print(table)
    write_figures(options.json, figures)


if __name__ == "__main__":
    main()
