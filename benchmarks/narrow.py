"""What it costs to hold parts of a training step in bfloat16, against all of it in float32.

    rookery train shakespeare.txt --tokens 1M --layers 4 --width 192 --context 256 --out runs/narrow
    python -m benchmarks.narrow runs/narrow

Each RUN is a folder of `rookery train`. One step reads its held-out text, in rows four times as long as the
run's context, and is computed in float32; then with these parts rounded: the logarithms of the recurrence's
decays (RWKV-6 and 7), the residual stream with what layers add to it, or all that autocast rounds. The
figures are the divergence of the next token's distribution, KL in nats a token, and the relative error of the
gradient, of the norm of all of it. On a CPU, where autocast leaves decays and the stream in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.report import Figure, add_report_arguments, write_figures
from rookery import checkpoints
from rookery.models import RWKV, from_checkpoint, rwkv6, rwkv7, sequence_model
from rookery.tokenizers import from_spec
from rookery.train.corpus import read_corpus
from rookery.train.loss import cross_entropy
from rookery.train.run_folder import RunFolder

__all__ = ["DECAYS", "STREAM", "main", "measure"]

DECAYS, STREAM = "logarithms of decays", "residual stream"

# Parts that are rounded, and whether autocast is on.
_WAYS: Mapping[str, tuple[tuple[str, ...], bool]] = {
    DECAYS: ((DECAYS,), False),
    STREAM: ((STREAM,), False),
    "autocast": ((), True),
    f"autocast, {DECAYS}": ((DECAYS,), True),
    f"autocast, {STREAM}": ((STREAM,), True),
}
_ROWS = 16


@dataclass(frozen=True)
class _Step:
    log_probabilities: Tensor
    """In float64: the divergence is a small difference of large numbers."""

    gradient: Tensor


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.narrow",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a folder of `rookery train`")
    add_report_arguments(parser)
    options = parser.parse_args(arguments)
    print("| model | in bfloat16 | KL, nats | error of the gradient |")
    print("| --- | --- | ---: | ---: |")
    write_figures(options.json, [figure for run in options.runs for figure in measure(run)])


def measure(run: Path) -> list[Figure]:
    """The figures of one run, and their rows of the table."""
    folder = RunFolder(run)
    config, checkpoint = folder.read_config(), checkpoints.load(folder.model)
    assert checkpoint.tokenizer is not None
    tokenizer = from_spec(checkpoint.tokenizer)
    stream, length = read_corpus(config, lambda _: tokenizer).validation, 4 * config.context
    rows = stream.rows(stream.windows(length)[:_ROWS], length)
    inputs, targets = torch.from_numpy(rows.inputs), torch.from_numpy(rows.targets)
    starts = None if rows.starts is None else torch.from_numpy(rows.starts)
    model = from_checkpoint(checkpoint, dtype=torch.float32)
    shape = model.config
    name = f"RWKV-{shape.version}, {shape.num_layers} layers of {shape.width}"

    def step(parts: tuple[str, ...], autocast: bool) -> _Step:
        model.zero_grad()
        with _rounded(*parts), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits, _ = model(inputs, starts=starts)
            cross_entropy(logits.float(), targets).backward()
        gradient = torch.cat([x.grad.flatten() for x in model.parameters() if x.grad is not None])
        return _Step(logits.detach().double().log_softmax(-1), gradient)

    exact, figures = step((), False), []
    for way, (parts, autocast) in _WAYS.items():
        if DECAYS in parts and not _has_decays_of_tokens(model):
            continue
        found = step(parts, autocast)
        log_p, log_q = exact.log_probabilities, found.log_probabilities
        divergence = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        error = float((found.gradient - exact.gradient).norm() / exact.gradient.norm())
        figures += [
            Figure(f"{name}: {way}, KL", divergence, "nats"),
            Figure(f"{name}: {way}, error of the gradient", error, "of the norm"),
        ]
        print(f"| {name} | {way} | {divergence:.1e} | {error:.1e} |", flush=True)
    return figures


def _has_decays_of_tokens(model: RWKV) -> bool:
    return model.config.version in ("6", "7")


@contextmanager
def _rounded(*parts: str) -> Iterator[None]:
    """Models inside hold these parts in bfloat16."""
    patches = [
        (rwkv7, "rwkv7_inputs", DECAYS, _inputs7),
        (rwkv6, "rwkv6_decay", DECAYS, _decay6),
        (sequence_model, "add_norm", STREAM, _add_norm),
    ]
    with ExitStack() as stack:
        for module, name, part, how in patches:
            if part in parts:
                stack.enter_context(patch.object(module, name, how(getattr(module, name))))
        yield


def _inputs7(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        found = function(*given, **named)
        return found._replace(log_w=found.log_w.bfloat16())

    return call


def _decay6(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *given, **named: function(*given, **named).bfloat16()


def _add_norm(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Tensor, added: Tensor | None, *norm: Tensor, **named: Any) -> Any:
        # The weights of the norm decide what it is computed in: that is no part of the stream.
        total, normal = function(
            x.bfloat16().float(), None if added is None else added.bfloat16().float(), *norm, **named
        )
        return total.bfloat16().float(), normal

    return call


if __name__ == "__main__":
    main()
