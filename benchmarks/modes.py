"""Time-parallel against time-sequential mode, and RWKV-7 against a GPT of the same shape.

    python -m benchmarks.modes [--versions 7 ...] [--json FILE]

Three tables:

1. Generation, one stream: time and memory of a token after 1k, 16k and 64k tokens, both constant for a
   recurrent model: the state does not grow.
2. Training of RWKV-7 against a GPT (scaled_dot_product_attention) of the same shape, interleaved in one run.
3. Training, tokens/s of forward + backward + AdamW: the chunked form against the sequential loop of the same
   model, at growing context and a constant number of tokens a step.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.report import (
    Figure,
    add_report_arguments,
    interleaved_medians,
    print_figures,
    write_figures,
)
from benchmarks.training import VOCAB, measure_against_gpt, rwkv, training_step
from rookery.config import VERSIONS, ModelConfig, Version, sized

CONSOLE = Console()


def measure_training(config: ModelConfig, contexts: list[int], tokens_per_step: int) -> list[Figure]:
    """Tokens/s of both modes."""
    figures = []
    model, optimizer = rwkv(config)
    for context in contexts:
        batch = max(1, tokens_per_step // context)
        tokens = torch.randint(VOCAB, (batch, context + 1), generator=torch.Generator().manual_seed(1))
        # A sequential step takes up to a minute: one is enough, and is its own warm-up.
        for mode, implementation, repeats, warm_up in (
            ("parallel", "chunked", 5, 1),
            ("sequential", "reference", 1, 0),
        ):
            step = training_step(model, optimizer, tokens, implementation=implementation)
            (seconds,) = interleaved_medians([step], repeats=repeats, warm_up=warm_up)
            name = f"RWKV-{config.version} training, {mode}, T {context}"
            figures.append(Figure(name, batch * context / seconds, "tok/s"))
            gc.collect()
    return figures


@torch.inference_mode()
def measure_generation(config: ModelConfig, lengths: list[int]) -> list[Figure]:
    """Milliseconds and resident memory of one more token after ``lengths`` tokens."""
    figures = []
    model, _ = rwkv(config)
    generator = torch.Generator().manual_seed(2)
    state, seen = model.initial_state(1), 0
    process = psutil.Process()
    for length in lengths:
        while seen < length:
            count = min(1024, length - seen)
            tokens = torch.randint(VOCAB, (1, count), generator=generator)
            logits, state = model(tokens, state, last_only=True)
            seen += count
        seconds = []
        for _ in range(128):
            token = logits[:, -1].argmax(-1, keepdim=True)
            start = time.perf_counter()
            logits, state = model(token, state)
            seconds.append(time.perf_counter() - start)
            seen += 1
        state_bytes = sum(part.numel() * part.element_size() for part in state)
        name = f"RWKV-{config.version} generation after {length} tokens"
        figures.append(Figure(f"{name}, time", statistics.median(seconds) * 1e3, "ms/token"))
        figures.append(Figure(f"{name}, state", state_bytes / 1e3, "kB"))
        figures.append(Figure(f"{name}, resident memory", process.memory_info().rss / 1e6, "MB"))
    return figures


def _values(figures: list[Figure], pattern: str, keys: list[int]) -> list[float]:
    by_name = {figure.figure: figure.value for figure in figures}
    return [by_name[pattern.format(key)] for key in keys]


def _training_table(figures: list[Figure], versions: list[Version], contexts: list[int]) -> Table:
    table = Table(title="Training, tokens/s", title_justify="left")
    table.add_column("model")
    table.add_column("mode")
    for context in contexts:
        table.add_column(f"T {context}", justify="right")
    for version in versions:
        for mode in ("parallel", "sequential"):
            values = _values(figures, f"RWKV-{version} training, {mode}, T {{}}", contexts)
            table.add_row(f"RWKV-{version}", f"time-{mode}", *(f"{value:,.0f}" for value in values))
    return table


def _generation_table(figures: list[Figure], versions: list[Version], lengths: list[int]) -> Table:
    table = Table(title="Generation, one stream, after so many tokens", title_justify="left")
    table.add_column("model")
    table.add_column("figure")
    for length in lengths:
        table.add_column(f"{length:,}", justify="right")
    for version in versions:
        for part, unit, digits in (("time", "ms/token", 2), ("state", "kB", 1), ("resident memory", "MB", 0)):
            values = _values(figures, f"RWKV-{version} generation after {{}} tokens, {part}", lengths)
            cells = (f"{value:,.{digits}f}" for value in values)
            table.add_row(f"RWKV-{version}", f"{part}, {unit}", *cells)
    return table


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.modes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=list(VERSIONS))
    parser.add_argument("--width", type=int, default=256, help="model width of every table (default: 256)")
    parser.add_argument("--layers", type=int, default=6, help="layers of every table (default: 6)")
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 16384, 65536])
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's)")
    add_report_arguments(parser)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    versions = options.versions
    configs = [
        sized(version, vocab_size=VOCAB, width=options.width, num_layers=options.layers)
        for version in versions
    ]
    # First, because a process keeps some of the memory that training took.
    generation = [figure for config in configs for figure in measure_generation(config, options.lengths)]
    CONSOLE.print(_generation_table(generation, versions, options.lengths))
    against_gpt = measure_against_gpt(
        options.width, options.layers, {512: 1 / 3, 1024: None, 4096: None}, options.tokens_per_step
    )
    print_figures("RWKV-7 against a GPT of the same shape", against_gpt)
    training = [
        figure
        for config in configs
        for figure in measure_training(config, options.contexts, options.tokens_per_step)
    ]
    CONSOLE.print(_training_table(training, versions, options.contexts))
    write_figures(options.json, [*against_gpt, *training, *generation])


if __name__ == "__main__":
    main()
