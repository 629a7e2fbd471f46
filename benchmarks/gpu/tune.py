"""Which choices make a recurrence's kernels fastest on a device.

    python -m benchmarks.gpu.tune wkv7
    python -m benchmarks.gpu.tune wkv7 --try precision=bf16,warps=8 --try SPAN=8 [--json FILE]
    python -m benchmarks.gpu.tune wkv7 --dry-run

What kernels are launched with are constants and small functions of ``rookery.ops.<recurrence>.triton``. A
variant puts others in their place: NAME=VALUE sets a constant, or what a function returns. Each is checked
against float64 and timed forward and with the backward pass, in turn with all others, at the size of the
benchmark. `precision` is that of products: tf32, tf32x3, or bf16, which Triton's interpreter multiplies
wrongly. One that fails, as where it asks for too much shared memory, is a figure that failed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import secrets
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu.correctness import FORWARD, GRADIENT, errors
from benchmarks.gpu.process import reason_of
from benchmarks.gpu.recurrences import call, implementation_of, inputs_of, leaves
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timing import free, generator, timed
from benchmarks.report import Figure, add_report_arguments, interleaved, print_figures, write_figures

__all__ = ["TRIED", "chosen", "main", "measure", "variant"]

Variant = Mapping[str, Any]

# RWKV-5's operator is RWKV-6's.
_MODULES = {"wkv4": "wkv4", "wkv5": "wkv6", "wkv6": "wkv6", "wkv7": "wkv7"}
TRIED = {
    "wkv7": (
        "backward_warps=4",
        "precision=bf16",
        "precision=bf16,backward_warps=4",
        "warps=8",
        "SPAN=8",
        "precision=bf16,SPAN=8",
        "stages=1",
        "precision=bf16,stages=3",
        "value_block=32",
        "precision=bf16,value_block=32",
    ),
    "wkv6": (
        "precision=bf16",
        "warps=8",
        "precision=bf16,warps=8",
        "KEPT=128",
        "value_block=32",
        "FORWARD=32",
    ),
    "wkv4": ("ENOUGH=65536", "ENOUGH=16384"),
}
TRIED["wkv5"] = TRIED["wkv6"]


def variant(text: str) -> Variant:
    """Choices by name, from ``NAME=VALUE,...``; numbers are numbers.

    Raises:
        ValueError: the text is none.
    """
    choices = {}
    for each in filter(None, text.split(",")):
        name, equals, value = each.partition("=")
        if not equals or not value:
            raise ValueError(f"{each!r} is not NAME=VALUE")
        choices[name] = int(value) if value.isdecimal() else value
    return choices


@contextmanager
def chosen(recurrence: str, choices: Variant) -> Iterator[None]:
    """Calls inside make these choices.

    Raises:
        ValueError: there is nothing of that name to choose.
    """
    module = import_module(f"rookery.ops.{_MODULES[recurrence]}.triton")
    unknown = [name for name in choices if not hasattr(module, name)]
    if unknown:
        raise ValueError(f"{module.__name__} has no {', '.join(unknown)}")

    def put(name: str, value: Any) -> Any:
        return (lambda *_: value) if callable(getattr(module, name)) else value

    values = {name: put(name, value) for name, value in choices.items()}
    # Without a name `patch.multiple` raises.
    with patch.multiple(module, **values) if values else nullcontext():
        yield


def measure(setting: Setting, recurrence: str, variants: Mapping[str, Variant]) -> Iterator[Figure]:
    """Milliseconds of each variant forward, and forward and backward, and its errors relative to the norm."""
    B, T, *_ = setting.shapes.kernel
    inputs = _inputs(setting, recurrence, B, T)
    implementation = implementation_of(recurrence, setting.device, torch.bfloat16, T)
    forward, both = {}, {}
    for name, choices in variants.items():
        try:
            with chosen(recurrence, choices):
                found = _errors(setting, recurrence, implementation)
                _turn(recurrence, inputs, implementation, choices)()
        except Exception as error:  # a kernel that does not compile or run here is a result as well
            yield Figure(f"{name}: forward + backward", float("nan"), "ms", failed=reason_of(error))
            continue
        for what in (FORWARD, GRADIENT):
            yield Figure(f"{name}: {what}", found[what], "of the norm")
        both[name] = timed(setting.device, _turn(recurrence, inputs, implementation, choices))
        forward[name] = timed(
            setting.device, _turn(recurrence, inputs, implementation, choices, backward=False)
        )
    free(setting.device)
    for what, sides in (("forward", forward), ("forward + backward", both)):
        measured = interleaved(sides, rounds=setting.shapes.rounds, warm_up=setting.shapes.warm_up)
        medians = {name: statistics.median(each) for name, each in measured.items()}
        for name in sorted(medians, key=medians.__getitem__):
            yield Figure(f"{name}: {what}", medians[name] * 1e3, "ms")


def _inputs(setting: Setting, recurrence: str, B: int, T: int) -> list[Tensor]:
    _, _, H, K = setting.shapes.kernel
    return leaves(inputs_of(recurrence, B, T, H, K, dtype=torch.bfloat16, generator=generator(setting)))


def _turn(
    recurrence: str, inputs: list[Tensor], implementation: str, choices: Variant, *, backward: bool = True
) -> Callable[[], None]:
    dy = torch.ones_like(inputs[3])

    def turn() -> None:
        with chosen(recurrence, choices):
            y, _ = call(recurrence, inputs, implementation)
            if backward:
                torch.autograd.grad(y, inputs, dy)

    return turn


def _errors(setting: Setting, recurrence: str, implementation: str) -> dict[str, float]:
    """On few heads."""
    shape = (*setting.shapes.checked, setting.shapes.kernel[3])
    return errors(recurrence, shape, torch.bfloat16, implementation, generator(setting, 1))


def _compile(values: dict[str, Any], recurrence: str, choices: Variant) -> None:
    """In a process of its own, so that the measurement finds kernels compiled; it meets errors again."""
    setting = Setting.from_dict(values)
    try:
        inputs = _inputs(setting, recurrence, 8, 256)
        _turn(recurrence, inputs, implementation_of(recurrence, "cuda", torch.bfloat16, 256), choices)()
    except Exception as error:
        print(f"{dict(choices)}: {reason_of(error)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recurrence", choices=sorted(_MODULES))
    parser.add_argument(
        "--try",
        dest="tried",
        action="append",
        metavar="NAME=VALUE,...",
        help="beside the present choices; may be given several times (default: what seems worth it)",
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU; measures nothing")
    add_report_arguments(parser)
    options = parser.parse_args(arguments)
    if not options.dry_run and not Path("/dev/nvidiactl").exists():
        parser.error("there is no NVIDIA GPU here; --dry-run runs it in small on the CPU")
    tried = options.tried if options.tried is not None else TRIED[options.recurrence]
    variants: dict[str, Variant] = {"as it is": {}}
    try:
        variants |= {text: variant(text) for text in tried}
        for choices in variants.values():
            with chosen(options.recurrence, choices):
                pass
    except ValueError as error:
        parser.error(str(error))
    setting = Setting(
        device="cpu" if options.dry_run else "cuda", tiny=options.dry_run, seed=secrets.randbelow(1 << 31)
    )
    if not setting.tiny:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
            list(pool.map(partial(_compile, setting.to_dict(), options.recurrence), variants.values()))
    figures = list(measure(setting, options.recurrence, variants))
    tiny = " (tiny, on a CPU: no measurement)" if setting.tiny else ""
    print_figures(f"{options.recurrence}{tiny}", figures)
    write_figures(options.json, figures, peers=("triton",))


if __name__ == "__main__":
    main()
