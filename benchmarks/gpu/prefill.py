"""Reading a prompt with a bfloat16 model, against the rate of matrix products measured in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.gpu import models
from benchmarks.gpu.floors import prefill_operations
from benchmarks.gpu.setting import Fact, Setting
from benchmarks.gpu.timing import free, generator, timed
from benchmarks.report import Figure, interleaved
from rookery.generate.torch_backend import PREFILL_CHUNK, TorchBackend

__all__ = ["measure"]


def measure(setting: Setting, *, size: str) -> Iterator[Figure | Fact]:
    """Tokens a second, and the operations of the matrices alone over the matrix rate."""
    shapes = setting.shapes
    config = shapes.models[size]
    model = models.rwkv(config, setting.device, generator(setting)).bfloat16().requires_grad_(False)
    free(setting.device)
    tokens = np.random.default_rng(setting.seed).integers(config.vocab_size, size=(1, shapes.prompt))
    name = f"prefill {size}, {shapes.prompt} tokens"
    # By default, so that a prompt takes little memory; and as many at once as a GPU has room for.
    chunks = sorted({min(PREFILL_CHUNK, shapes.prompt), shapes.prompt // 4, shapes.prompt})

    def reading(chunk: int) -> Callable[[], object]:
        backend = TorchBackend(model, prefill_chunk=chunk)
        return lambda: backend.forward(tokens, backend.initial_state(), last_only=True)

    turns = {str(chunk): timed(setting.device, reading(chunk)) for chunk in chunks}
    measured = interleaved(turns, rounds=shapes.rounds, warm_up=shapes.warm_up)
    medians = {chunk: statistics.median(each) for chunk, each in measured.items()}
    for chunk, each in medians.items():
        yield Figure(f"{name}, {chunk} at a time", shapes.prompt / each, "tok/s")
    fastest = min(medians, key=lambda chunk: medians[chunk])
    yield Fact(name=name, value=f"{fastest} tokens at a time")
    rate = prefill_operations(config, shapes.prompt) / medians[fastest]
    yield Figure(f"{name}: of the measured matrix rate", rate / setting.measured_limits().matrix, "ratio")
