"""The parts of the benchmark: each one measures its sides in turn and returns figures."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import cold_start
from benchmarks.cpu import llama
from benchmarks.cpu.engines import (
    Engine,
    Rookery,
    RwkvPackage,
    bytes_of_a_step,
    operations_of_a_prompt,
    rwkv_installed,
)
from benchmarks.cpu.process import resident_bytes
from benchmarks.report import Figure, interleaved, quotient
from rookery.native import _engine

__all__ = ["Setting", "against_rwkv_package", "decode", "limits", "prefill", "process", "streams", "training"]

PROMPT = 512
STREAMS = 16

# What of the machine one turn needs before it counts: threads of the side before go to sleep, ours wake.
PAUSE = 0.01
SETTLING_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all parts need."""

    files: Mapping[str, Path]
    """Type -> file of the model."""

    threads: int
    """Of every side."""

    rounds: int
    """Turns of each side that count."""

    tiny: bool
    """Whether sizes are such that a test can run everything."""

    say: Callable[[str], None]
    """Tells a person what goes on."""

    @property
    def steps(self) -> int:
        """Tokens of one turn of decoding."""
        return 2 if self.tiny else 16

    @property
    def probe_bytes(self) -> int:
        """Memory to read, many times what a cache holds."""
        return (8 if self.tiny else 400) << 20


def token_ids(count: int, seed: int = 0) -> list[int]:
    """The text of all sides."""
    return np.random.default_rng(seed).integers(1, 65530, count).tolist()


def limits(setting: Setting) -> list[Figure]:
    """What the machine reads and multiplies at most."""
    probe = _engine.ReadProbe(setting.probe_bytes, threads=setting.threads)
    sides = {"read bandwidth": functools.partial(probe.bandwidth, repetitions=3)}
    for name, peak in _PEAKS.items():
        sides[name] = functools.partial(peak, threads=setting.threads, repetitions=5)
    measured = interleaved(sides, rounds=setting.rounds)
    return [
        Figure(
            f"{name} of {setting.threads} threads", max(values) / 1e9, "Gop/s" if name in _PEAKS else "GB/s"
        )
        for name, values in measured.items()
    ]


def decode(setting: Setting) -> list[Figure]:
    """One stream, token by token: against llama.cpp, and against the bandwidth of memory."""
    probe = _engine.ReadProbe(setting.probe_bytes, threads=setting.threads)
    with _engines(setting, ours=("q8", "q4", "bf16"), theirs=("q8", "q4", "f16", "bf16")) as engines:
        agreement = _agreement(engines, token_ids(16))
        sides = {name: _decoding(engine, 1, setting.steps) for name, engine in engines.items()}
        sides["bandwidth"] = lambda: probe.bandwidth(repetitions=3)
        seconds = interleaved(sides, rounds=setting.rounds, pause=PAUSE)
    figures = []
    for ours, theirs, bound in (("q8", "q8", 2.0), ("q4", "q4", 2.0), ("bf16", "f16", 1.6)):
        figures += _ratio("decode, 1 stream", seconds, f"rookery {ours}", _LLAMA[theirs], bound)
    bandwidth = statistics.median(seconds["bandwidth"])
    figures.append(Figure("decode, 1 stream: read bandwidth in the same rounds", bandwidth / 1e9, "GB/s"))
    for kind, theirs, bound in (("bf16", "f16", 0.8), ("q8", "q8", 0.8), ("q4", "q4", 0.7)):
        count = bytes_of_a_step(setting.files[kind], token_ids(8), threads=setting.threads)
        # Seconds that the bytes would take at the bandwidth of the same round, over those that the step took.
        needed = [count / each for each in seconds["bandwidth"]]
        share = quotient(needed, seconds[f"rookery {kind}"])
        name = f"decode, 1 stream, {kind}"
        figures.append(Figure(f"{name}: bytes read / bandwidth", share, "ratio", bound=bound))
        figures.append(Figure(f"{name}: bytes read a token", count / 1e6, "MB"))
        peer = _LLAMA[theirs]
        if peer in seconds:
            most = quotient(seconds[peer], needed)
            figures.append(Figure(f"{name}: the bandwidth itself / {peer}", most, "ratio"))
    figures += _rates("decode, 1 stream", seconds, 1)
    return figures + agreement


def prefill(setting: Setting) -> list[Figure]:
    """A prompt of 512 tokens, logits of the last one."""
    prompt = token_ids(32 if setting.tiny else PROMPT)
    name = f"prefill, {len(prompt)} tokens"
    with _engines(setting, ours=("q8", "q4", "bf16"), theirs=("f16", "bf16", "q8", "q4")) as engines:
        sides = {side: _reading(engine, prompt) for side, engine in engines.items()}
        for limit, peak in _PEAKS.items():
            sides[limit] = functools.partial(peak, threads=setting.threads, repetitions=5)
        seconds = interleaved(sides, rounds=max(1, setting.rounds // 2), pause=PAUSE)
    figures = []
    operations = operations_of_a_prompt(setting.files["pth"], len(prompt))
    for kind, limit in (("q8", "int8 peak"), ("q4", "int8 peak"), ("bf16", "bf16 peak")):
        share = quotient([operations / each for each in seconds[limit]], seconds[f"rookery {kind}"])
        figures.append(Figure(f"{name}, {kind}: operations / {limit}", share, "ratio"))
    peers = [side for side in seconds if side.startswith("llama.cpp")]
    if peers:
        fastest = min(peers, key=lambda side: statistics.median(seconds[side]))
        ratio = quotient(seconds[fastest], seconds["rookery q8"])
        figures.append(Figure(f"{name}, rookery q8 / {fastest} (its fastest)", ratio, "ratio", bound=2.0))
    return figures + _rates(name, seconds, len(prompt))


def streams(setting: Setting) -> list[Figure]:
    """Sixteen streams, one token of each in every call."""
    count = 2 if setting.tiny else STREAMS
    name = f"decode, {count} streams"
    with _engines(setting, ours=("q8", "q4", "bf16"), theirs=("q8",), streams=count) as engines:
        sides = {side: _decoding(engine, count, setting.steps) for side, engine in engines.items()}
        seconds = interleaved(sides, rounds=setting.rounds, pause=PAUSE)
    return [*_ratio(name, seconds, "rookery q8", _LLAMA["q8"], 2.0), *_rates(name, seconds, count)]


def against_rwkv_package(setting: Setting) -> list[Figure]:
    """The `rwkv` package in float32, and our engine in float32. It is slow: a few rounds show how much."""
    if not rwkv_installed():
        return []
    figures = []
    rounds, prompt = min(3, setting.rounds), token_ids(32 if setting.tiny else PROMPT)
    path = setting.files["pth"]
    engines: dict[str, Engine] = {
        "rookery float32": Rookery(path, threads=setting.threads, dtype="float32"),
        "rwkv 0.8.32 float32": RwkvPackage(path, threads=setting.threads),
    }
    for name, tokens, sides in (
        ("decode, 1 stream", 1, {side: _decoding(each, 1, 4) for side, each in engines.items()}),
        (f"prefill, {len(prompt)} tokens", len(prompt), {s: _reading(e, prompt) for s, e in engines.items()}),
    ):
        seconds = interleaved(sides, rounds=rounds, warm_up=1 if tokens == 1 else 0, pause=PAUSE)
        figures += _ratio(name, seconds, *engines, None)
        figures += _rates(name, seconds, tokens)
    return figures


def process(setting: Setting) -> list[Figure]:
    """Memory of a fresh process above its weight file, and what a person waits for."""
    figures = []
    for kind in ("q8", "bf16"):
        path = setting.files[kind]
        above = resident_bytes(path, threads=setting.threads) - path.stat().st_size
        name = f"resident memory above the weight file, {kind}"
        figures.append(Figure(name, above / 1e6, "MB", bound=64, at_most=True))
    models = {kind: setting.files[kind] for kind in ("q8", "bf16")}
    return figures + cold_start.measure(models, rounds=1 if setting.tiny else 5)


def training(setting: Setting) -> list[Figure]:
    """RWKV-7 against a GPT of the same shape, in tokens a second."""
    import torch

    from benchmarks.training import measure_against_gpt

    torch.set_num_threads(setting.threads)
    if setting.tiny:
        return measure_against_gpt(64, 1, {32: 1.0}, 64, repeats=1)
    return measure_against_gpt(256, 6, {1024: 1.0, 4096: 1.5}, 4096, repeats=max(1, setting.rounds // 2))


_PEAKS = {"int8 peak": _engine.int8_peak, "bf16 peak": _engine.bf16_peak, "fp32 peak": _engine.fp32_peak}

_LLAMA = {
    "q8": "llama.cpp Q8_0",
    "q4": "llama.cpp Q4_0",
    "f16": "llama.cpp F16",
    "bf16": "llama.cpp BF16",
}


@contextmanager
def _engines(
    setting: Setting, *, ours: Sequence[str], theirs: Sequence[str], streams: int = 1
) -> Iterator[dict[str, Engine]]:
    """Both sides by name; llama.cpp's only where it is installed."""
    options = {"threads": setting.threads, "streams": streams}
    with ExitStack() as stack:
        engines: dict[str, Engine] = {
            f"rookery {kind}": Rookery(setting.files[kind], **options) for kind in ours
        }
        for kind in theirs if llama.installed() else ():
            engines[_LLAMA[kind]] = stack.enter_context(
                closing(llama.LlamaCpp(setting.files[kind], **options))
            )
        yield engines


def _decoding(engine: Engine, count: int, steps: int) -> Callable[[], float]:
    """A turn: seconds of one step in which `count` streams read a token each."""
    tokens = itertools.cycle(token_ids(997))

    def step() -> float:
        return engine.advance([(stream, [next(tokens)]) for stream in range(count)])

    def turn() -> float:
        for _ in range(SETTLING_STEPS):
            step()
        return sum(step() for _ in range(steps)) / steps

    return turn


def _reading(engine: Engine, prompt: Sequence[int]) -> Callable[[], float]:
    """A turn: seconds of one prompt."""

    def turn() -> float:
        engine.forget()
        return engine.advance([(0, prompt)])

    return turn


def _ratio(
    name: str, seconds: Mapping[str, list[float]], ours: str, theirs: str, bound: float | None
) -> list[Figure]:
    """How many times as fast we are; nothing where the other side is absent."""
    if theirs not in seconds:
        return []
    return [
        Figure(f"{name}, {ours} / {theirs}", quotient(seconds[theirs], seconds[ours]), "ratio", bound=bound)
    ]


def _rates(name: str, seconds: Mapping[str, list[float]], tokens: int) -> list[Figure]:
    return [
        Figure(f"{name}, {side}", tokens / statistics.median(each), "tok/s")
        for side, each in seconds.items()
        if side != "bandwidth" and side not in _PEAKS
    ]


def _agreement(engines: Mapping[str, Engine], prompt: Sequence[int]) -> list[Figure]:
    """How far the logits of both sides are apart for the same file: that they compute the same model."""
    figures = []
    for ours, theirs in (("q8", "q8"), ("q4", "q4"), ("bf16", "bf16")):
        if _LLAMA[theirs] not in engines:
            continue
        sides = engines[f"rookery {ours}"], engines[_LLAMA[theirs]]
        logits = []
        for engine in sides:
            engine.forget()
            engine.advance([(0, prompt)])
            logits.append(engine.logits())
        apart = float(np.linalg.norm(logits[0] - logits[1]) / np.linalg.norm(logits[1]))
        name = f"logits, rookery {ours} against {_LLAMA[theirs]}: difference"
        figures.append(Figure(name, apart, "of their norm"))
    return figures
