"""Reading a prompt with a bfloat16 model, against the rate of matrix products measured in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

from benchmarks.gpu import models
from benchmarks.gpu.floors import prefill_operations
from benchmarks.gpu.setting import Fact, Setting
from benchmarks.gpu.timing import free, generator, timed
from benchmarks.report import Figure, interleaved
from rookery.generate.torch_backend import PREFILL_CHUNK
from rookery.models import RWKV

__all__ = ["measure", "read"]


def measure(setting: Setting, *, size: str) -> Iterator[Figure | Fact]:
    """Tokens a second, and the operations of the matrices alone over the matrix rate."""
    shapes = setting.shapes
    config = shapes.models[size]
    model = models.rwkv(config, setting.device, generator(setting)).bfloat16().requires_grad_(False)
    free(setting.device)
    tokens = torch.randint(
        config.vocab_size, (1, shapes.prompt), generator=generator(setting), device=setting.device
    )
    name = f"prefill {size}, {shapes.prompt} tokens"
    turns = {
        chunk: timed(setting.device, lambda chunk=chunk: read(model, tokens, chunk))
        for chunk in sorted({shapes.prompt, shapes.prompt // 4, min(PREFILL_CHUNK, shapes.prompt)})
    }
    measured = interleaved(
        {str(chunk): turn for chunk, turn in turns.items()}, rounds=shapes.rounds, warm_up=shapes.warm_up
    )
    medians = {chunk: statistics.median(each) for chunk, each in measured.items()}
    for chunk, each in medians.items():
        yield Figure(f"{name}, {chunk} at a time", shapes.prompt / each, "tok/s")
    fastest = min(medians, key=lambda chunk: medians[chunk])
    yield Fact(name=name, value=f"{fastest} tokens at a time")
    rate = prefill_operations(config, shapes.prompt) / medians[fastest]
    yield Figure(f"{name}: of the measured matrix rate", rate / setting.measured_limits().matrix, "ratio")


@torch.inference_mode()
def read(model: RWKV, tokens: torch.Tensor, chunk: int) -> torch.Tensor:
    """The logits of the last token of a prompt [1, T], `chunk` tokens of it at a time."""
    state, logits = None, None
    for part in tokens.split(chunk, dim=1):
        logits, state = model(part, state, last_only=True)
    assert logits is not None
    return logits
