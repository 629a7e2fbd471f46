"""Decoding greedily with a bfloat16 model: one stream against the bytes it must read, and many streams."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.gpu import models
from benchmarks.gpu.floors import decode_bytes
from benchmarks.gpu.setting import Fact, Setting, decoding_of
from benchmarks.gpu.timing import free, generator, seconds
from benchmarks.report import Figure
from rookery.generate import SamplingParams
from rookery.generate.batch import BatchDecoder
from rookery.generate.torch_backend import TorchBackend

__all__ = ["measure"]


def measure(setting: Setting, *, size: str, streams: int) -> Iterator[Figure | Fact]:
    """Tokens a second of all streams together; for one stream also what part of the limit that is."""
    config = setting.shapes.models[size]
    model = models.rwkv(config, setting.device, generator(setting)).bfloat16().requires_grad_(False)
    free(setting.device)
    decoder = BatchDecoder(TorchBackend(model), max_streams=streams, sizes=[streams])
    for stream in range(streams):
        decoder.join([stream % config.vocab_size], sampling=SamplingParams(temperature=0))
    steps = setting.shapes.steps

    def turn() -> None:
        decoder.steps(steps)

    for _ in range(max(1, setting.shapes.warm_up)):  # the first one records the sampler
        turn()
    each = statistics.median(seconds(setting.device, turn) for _ in range(setting.shapes.rounds)) / steps
    name = decoding_of(size, streams)
    yield Fact(name=f"{name}: step", value=decoder.implementations[streams] or "operators")
    yield Figure(f"{name}: total" if streams > 1 else name, streams / each, "tok/s")
    count = decode_bytes(config, streams)
    yield Figure(f"{name}: bytes read a step", count / 1e6, "MB")
    limit = setting.measured_limits().bandwidth / count
    yield Figure(f"{name}: of the limit by bytes read", 1 / each / limit, "ratio")
