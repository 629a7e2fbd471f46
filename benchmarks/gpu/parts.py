"""What is measured, in which order, and what each part promises: the bounds are here. Imports no torch.

A part runs in a process of its own, so that one that crashes, hangs or runs out of memory takes no other with
it. What it promised and did not measure is reported as failed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import nan
from types import MappingProxyType
from typing import Any

from benchmarks.gpu.setting import Shapes, decoding_of
from benchmarks.report import Figure

__all__ = ["COPY", "GROUPS", "LIMITS", "MATRIX", "MINUTES", "READ", "Part", "Stage", "stages"]

GROUPS = ("correctness", "kernels", "training", "decode", "prefill")
LIMITS = "limits"
MINUTES = 8

COPY = "memory bandwidth, copy (bytes read and written)"
READ = "memory bandwidth, sum (bytes read)"
MATRIX = "matrix rate, bf16"

# fla has none for RWKV-5; RWKV-6's computes it.
_RATIOS = {"wkv7": 2.0, "wkv6": 1.3, "wkv5": 1.3, "wkv4": 1.3}
# Seconds of timing: fla's kernels have some hundred configurations, but for RWKV-4; RWKV-5 has RWKV-6's.
_TUNING = {"wkv7": 40, "wkv6": 30, "wkv5": 20, "wkv4": 10}
_ERRORS = {"bfloat16": ("bf16", 6e-3), "float32": ("fp32", 1e-5)}
# Of the logits of a step of decoding: many layers, each of which rounds.
_STEP_ERRORS = {"bfloat16": ("bf16", 2e-2), "float32": ("fp32", 1e-4)}


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one process measures."""

    name: str
    """For people."""

    group: str
    """One of `GROUPS`, or `LIMITS`."""

    run: str
    """``module:function`` of this package: takes the setting and the options, yields figures and facts."""

    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Plain values for JSON."""

    promised: tuple[Figure, ...] = ()
    """What it must give, with the bounds."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Parts that run one after the other, or together where nothing is timed."""

    parts: tuple[Part, ...]
    seconds: float
    """Its share of `MINUTES`; what is left of it goes to the stages after it."""

    together: bool = False


def stages(groups: Collection[str], shapes: Shapes, *, tiny: bool) -> list[Stage]:
    """The whole plan for some of the groups. Where sizes are tiny nothing is bound."""
    plan = [Stage(parts=(_limits(),), seconds=20)]
    checks = _checks(shapes) if "correctness" in groups else []
    if "kernels" in groups and not tiny:
        checks = [*_compilations(), *checks]
    if checks:
        # Mostly compiling: as many at once as there are cores.
        plan.append(Stage(parts=tuple(checks), seconds=115, together=True))
    if "kernels" in groups:
        plan += [Stage(parts=(_kernel(name),), seconds=seconds) for name, seconds in _TUNING.items()]
    if "training" in groups:
        plan += [Stage(parts=(part,), seconds=42) for part in _training(shapes)]
    size = list(shapes.models)[-1]
    if "decode" in groups:
        plan += [Stage(parts=(part,), seconds=seconds) for part, seconds in _decoding(size, shapes)]
    if "prefill" in groups:
        plan.append(Stage(parts=(_prefill(size, shapes),), seconds=20))
    return [_unbound(stage) for stage in plan] if tiny else plan


def _unbound(stage: Stage) -> Stage:
    def without(part: Part) -> Part:
        return replace(part, promised=tuple(replace(each, bound=None) for each in part.promised))

    return replace(stage, parts=tuple(without(part) for part in stage.parts))


def _promise(name: str, unit: str, bound: float | None = None, *, at_most: bool = False) -> Figure:
    return Figure(name, nan, unit, bound, at_most, failed="not measured")


def _limits() -> Part:
    promised = (_promise(COPY, "GB/s"), _promise(READ, "GB/s"), _promise(MATRIX, "TFLOP/s"))
    return Part(name="bandwidth and matrix rate", group=LIMITS, run="limits:measure", promised=promised)


def _checks(shapes: Shapes) -> list[Part]:
    parts = []
    for recurrence in _RATIOS:
        # wkv4 has channels and no heads.
        for head_size in shapes.head_sizes[: 1 if recurrence == "wkv4" else None]:
            for dtype, (short, bound) in _ERRORS.items():
                where = f"{short}, head size {head_size}"
                name = f"{recurrence} forward error, {where}"
                parts.append(
                    Part(
                        name=f"{recurrence} against float64, {where}",
                        group="correctness",
                        run="correctness:measure",
                        options={"recurrence": recurrence, "dtype": dtype, "head_size": head_size},
                        promised=(_promise(name, "of the norm", bound, at_most=True),),
                    )
                )
    size = next(iter(shapes.models))
    # The fewest and the most that the kernels of few streams compute.
    for streams in (1, 4):
        for dtype, (short, bound) in _STEP_ERRORS.items():
            name = f"{decoding_of(size, streams)}, {short}"
            parts.append(
                Part(
                    name=f"{name} against float64",
                    group="correctness",
                    run="correctness:measure_step",
                    options={"size": size, "dtype": dtype, "streams": streams},
                    promised=(_promise(f"{name}: logits error", "of the norm", bound, at_most=True),),
                )
            )
    return parts


def _compilations() -> Iterable[Part]:
    for recurrence in _RATIOS:
        yield Part(
            name=f"compiling {recurrence} of both sides",
            group="kernels",
            run="kernels:compile_all",
            options={"recurrence": recurrence},
        )


def _kernel(recurrence: str) -> Part:
    name = f"{recurrence} forward + backward"
    absolute = {"bound": 8.0, "at_most": True} if recurrence == "wkv7" else {}
    return Part(
        name=name,
        group="kernels",
        run="kernels:measure",
        options={"recurrence": recurrence},
        promised=(
            _promise(f"{name}: fla's time / rookery's", "ratio", _RATIOS[recurrence]),
            _promise(f"{name}: rookery", "ms", **absolute),
        ),
    )


def _training(shapes: Shapes) -> Iterable[Part]:
    for size in shapes.models:
        for context, ratio in zip(shapes.contexts, (0.9, 1.5), strict=True):
            name = f"training {size}, T {context}"
            bound = 0.45 if context == shapes.contexts[0] else None
            yield Part(
                name=name,
                group="training",
                run="training:measure",
                options={"size": size, "context": context},
                promised=(
                    _promise(f"{name}: MFU by 6 N, of the data sheet's rate", "ratio", bound),
                    _promise(f"{name}: RWKV-7 / GPT", "ratio", ratio),
                ),
            )


def _decoding(size: str, shapes: Shapes) -> Iterable[tuple[Part, float]]:
    one, many = decoding_of(size, 1), decoding_of(size, shapes.streams)
    options = {"size": size, "streams": 1}
    promised = _promise(f"{one}: of the limit by bytes read", "ratio", 0.70)
    # A third of it for compiling.
    yield Part(name=one, group="decode", run="decode:measure", options=options, promised=(promised,)), 30
    options = {"size": size, "streams": shapes.streams}
    promised = _promise(f"{many}: total", "tok/s", 30_000)
    yield Part(name=many, group="decode", run="decode:measure", options=options, promised=(promised,)), 20


def _prefill(size: str, shapes: Shapes) -> Part:
    name = f"prefill {size}, {shapes.prompt} tokens"
    return Part(
        name=name,
        group="prefill",
        run="prefill:measure",
        options={"size": size},
        promised=(_promise(f"{name}: of the measured matrix rate", "ratio", 0.5),),
    )
