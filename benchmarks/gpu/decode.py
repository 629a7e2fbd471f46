"""Decoding greedily with a bfloat16 model: one stream against the bytes it must read, and many streams."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu import models
from benchmarks.gpu.floors import decode_bytes
from benchmarks.gpu.process import reason_of
from benchmarks.gpu.setting import Fact, Setting
from benchmarks.gpu.timing import free, generator, seconds
from benchmarks.report import Figure
from rookery.models import RWKV
from rookery.state import State

__all__ = ["decoder", "measure"]

Step = Callable[[], torch.Tensor]


def measure(setting: Setting, *, size: str, streams: int) -> Iterator[Figure | Fact]:
    """Tokens a second of all streams together; for one stream also what part of the limit that is."""
    config = setting.shapes.models[size]
    model = models.rwkv(config, setting.device, generator(setting)).bfloat16().requires_grad_(False)
    free(setting.device)
    name = f"decode {size}, {streams} stream{'s' if streams > 1 else ''}"
    step, way = decoder(model, streams)
    yield Fact(name=name, value=way)
    steps = setting.shapes.steps

    def turn() -> None:
        for _ in range(steps):
            step()

    for _ in range(setting.shapes.warm_up):
        turn()
    each = statistics.median(seconds(setting.device, turn) for _ in range(setting.shapes.rounds)) / steps
    if streams > 1:
        yield Figure(f"{name}: total", streams / each, "tok/s")
    else:
        yield Figure(name, 1 / each, "tok/s")
    count = decode_bytes(config, streams)
    yield Figure(f"{name}: bytes read a step", count / 1e6, "MB")
    limit = setting.measured_limits().bandwidth / count
    yield Figure(f"{name}: of the limit by bytes read", 1 / each / limit, "ratio")


def decoder(model: RWKV, streams: int) -> tuple[Step, str]:
    """What decodes one token of every stream, and in which way: each call goes on from the one before.

    On a GPU the step is recorded once as a CUDA graph, with tokens and states in buffers that stay, since to
    launch its kernels one by one takes the CPU longer than the GPU needs to run them.
    """
    device = model.emb.weight.device
    tokens = torch.zeros((streams, 1), dtype=torch.int64, device=device)
    state = model.initial_state(streams)

    @torch.inference_mode()
    def step() -> torch.Tensor:
        logits, after = model(tokens, state, last_only=True)
        tokens.copy_(logits[:, -1].argmax(-1, keepdim=True))
        for buffer, new in zip(state, State(*after), strict=True):
            buffer.copy_(new)
        return tokens

    if device.type != "cuda":
        return step, "step by step"
    try:
        return _recorded(step), "a CUDA graph"
    except RuntimeError as error:
        return step, f"step by step, since it cannot be recorded: {reason_of(error)}"


def _recorded(step: Step) -> Step:
    """A step as a CUDA graph; what it is made of must have run before, on another stream than the first."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return tokens

    return replay
