"""Compiles the kernels that operators launch for an H100, on a machine without a GPU, and launches nothing.

    python tests/ops/compile_for_gpu.py NAME

of `CASES`. Prints a JSON object: kernel -> how often it was compiled, and the most shared memory it takes.
The operators run on a CPU with what torch allocates, under a driver that only says which device it would be.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
import triton.language
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

# The tables of operators then let a CPU have the kernels, which are imported later, and are compiled.
os.environ["TRITON_INTERPRET"] = "1"

from rookery import ops
from rookery.config import sized
from rookery.models import RWKV
from rookery.ops.triton import READS

del os.environ["TRITON_INTERPRET"]


class _Driver:
    """What Triton asks of a driver before it launches."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


COMPILED: dict[str, list[int]] = {}


def _compile(kernel: Any, grid: Any) -> Callable[..., None]:
    def launch(*arguments: Any, **constants: Any) -> None:
        made = kernel.run(*arguments, grid=grid, warmup=True, **constants)
        count, shared = COMPILED.get(kernel.__name__, [0, 0])
        COMPILED[kernel.__name__] = [count + 1, max(shared, made.metadata.shared)]

    return launch


def _inputs(name: str, dtype: torch.dtype, B: int, T: int, H: int, K: int) -> list[Tensor]:
    row, width = (B, T, H, K), (B, T, H * K)
    shapes: dict[str, list[tuple[int, ...]]] = {
        "wkv4": [(H * K,), (H * K,), width, width],
        "wkv5": [row, (H, K), row, row, (H, K)],
        "wkv6": [row, row, row, row, (H, K)],
        "wkv7": [row] * 6,
        "gla": [row] * 4,
    }
    return [torch.zeros(shape, dtype=dtype).requires_grad_() for shape in shapes[name]]


def recurrence(name: str, *shapes: tuple[torch.dtype, int, int, int, int]) -> None:
    """Forward and backward, at sizes B, T, H, K; rows that end inside a chunk have documents."""
    for dtype, B, T, H, K in shapes:
        inputs = _inputs(name, dtype, B, T, H, K)
        starts = torch.zeros(B, T, dtype=torch.bool) if T % 16 else None
        y, _ = getattr(ops, name)(*inputs, starts=starts, implementation="triton")
        torch.autograd.grad(y, inputs, torch.ones_like(y))
        with torch.no_grad():
            getattr(ops, name)(*inputs, starts=starts, implementation="triton")


def recurrence_and_output(*shapes: tuple[torch.dtype, int, int, int, int]) -> None:
    """RWKV-7's, with the gradient of the bonus in the recurrence's; at sizes B, T, H, K."""
    from rookery.ops import fused
    from rookery.ops.fused import operators

    operators.SERVED["cpu"] = operators.TRITON_SERVED["cpu"] = READS
    output: Any = import_module("rookery.ops.fused.rwkv7_output")
    output._forward.register_kernel("cpu")(output._forward_by_triton)
    output._bonus_backward.register_kernel("cpu")(output._bonus_backward._init_fn)
    for dtype, B, T, H, K in shapes:
        inputs = [torch.zeros(B, T, H * K, dtype=dtype).requires_grad_() for _ in range(7)]
        vectors = {"r_k": torch.zeros(H, K), "weight": torch.zeros(H * K), "bias": torch.zeros(H * K)}
        y, _ = fused.wkv7_with_output(*inputs, None, **vectors, epsilon=64e-5, implementation="triton")
        y.float().sum().backward()


def decoding() -> None:
    """A step of RWKV-7 by the kernels of few streams, and one in place of each version."""
    from rookery.generate.batch.steps import StepRecorder
    from rookery.ops.in_place import IN_PLACE

    for version in ("4", "5.2", "6", "7"):
        config = sized(version, vocab_size=256, width=256, num_layers=2)
        model = RWKV(config).bfloat16().requires_grad_(False)
        for streams, implementation in ((1, "few streams"), (4, "few streams"), (8, IN_PLACE)):
            if implementation == IN_PLACE or version == "7":
                state = model.initial_state(streams)
                logits = torch.empty(streams, 256, dtype=torch.bfloat16)
                recorder = StepRecorder(model, implementation=implementation)
                recorder.record(torch.zeros(streams, dtype=torch.int64), state, logits)


def elementwise() -> None:
    """What lies between matrix products and recurrences in training, the loss, and quantized products."""
    from rookery.ops import fused
    from rookery.ops.fused import cross_entropy, operators
    from rookery.ops.quantized.triton import quantized_linear_triton

    operators.SERVED["cpu"] = operators.TRITON_SERVED["cpu"] = READS
    operators.NARROWS = ("cpu",)
    shifted: Any = import_module("rookery.ops.fused.shifted_products")
    for operator in ("_fold", "_fold_backward", "_add_previous", "_spread"):
        getattr(shifted, operator).register_kernel("cpu")(getattr(shifted, operator)._init_fn)
    for name in (
        "add_norm",
        "head_norm",
        "rwkv6_decay",
        "rwkv7_inputs",
        "rwkv7_output",
        "sigmoid_gate",
        "squared_relu",
        "token_shift",
    ):
        module: Any = import_module(f"rookery.ops.fused.{name}")
        for operator in ("_forward", "_backward"):
            by_triton = getattr(module, f"{operator}_by_triton", getattr(module, operator)._init_fn)
            getattr(module, operator).register_kernel("cpu")(by_triton)
    B, T, H, K = 2, 128, 4, 64
    row, channels = (B, T, H * K), (H * K,)

    def numbers(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16).requires_grad_()

    starts = torch.zeros(B, T, dtype=torch.bool)
    first = {"w0": numbers(*channels), "a0": numbers(*channels), "k_k": numbers(*channels)}
    wide, channels_of = torch.zeros(row, requires_grad=True), [numbers(*channels) for _ in range(2)]
    for made in (
        fused.shifted_products(
            numbers(*row),
            numbers(B, H * K),
            [numbers(1, 1, H * K)],
            [(numbers(1, 1, H * K), numbers(H * K, rank)) for rank in (64, 256)],
            starts=starts,
        )[1],
        fused.add_norm(wide, numbers(*row), *channels_of, epsilon=1e-5),
        fused.add_norm(numbers(*row), None, *channels_of, epsilon=1e-5),
        fused.token_shift(numbers(*row), None, [numbers(1, 1, H * K) for _ in range(6)], starts=starts),
        fused.token_shift(numbers(*row), numbers(B, H * K), [numbers(*row)], starts=None, to_present=True),
        [fused.squared_relu(numbers(*row))],
        [fused.sigmoid_gate(numbers(*row), numbers(*row))],
        [fused.rwkv6_decay(numbers(*row), numbers(*channels), heads=H)],
        *(
            [fused.head_norm(numbers(*row), gate, *channels_of, heads=H, epsilon=64e-5)]
            for gate in (numbers(*row), None)
        ),
        fused.rwkv7_inputs(
            *(numbers(*row) for _ in range(4)), None, **first, k_a=numbers(*channels), heads=H
        ),
        [
            fused.rwkv7_output(
                *(numbers(*row) for _ in range(5)),
                r_k=numbers(H, K),
                weight=numbers(*channels),
                bias=numbers(*channels),
                heads=H,
                epsilon=64e-5,
            )
        ],
    ):
        sum(each.float().sum() for each in made).backward()
    targets, losses = torch.zeros(4, dtype=torch.int64), torch.zeros(4)
    cross_entropy.softmax_by_triton(torch.zeros(4, 65536), targets, losses, -100, 0.1, True)
    x, scales = torch.zeros(1, 128, dtype=torch.bfloat16), torch.zeros(64, 4, dtype=torch.float16)
    # Blocks of 32 numbers, of 8 bits, and two of 4 bits in a byte.
    for kind, count in ((torch.int8, 32), (torch.uint8, 16)):
        blocks = torch.zeros(64, 4, count, dtype=kind)
        for rows in (1, 40):
            quantized_linear_triton(x.expand(rows, 128).contiguous(), blocks, scales)


# Heads that fill a GPU, and rows of few heads that are cut.
USUAL = ((torch.bfloat16, 2, 64, 256, 64), (torch.bfloat16, 1, 1100, 2, 64))
OTHERS = ((torch.float32, 1, 41, 1, 64), (torch.bfloat16, 1, 41, 1, 128), (torch.float32, 1, 41, 1, 128))
CASES: dict[str, Callable[[], None]] = {
    **{name: partial(recurrence, name, *USUAL) for name in ("wkv4", "wkv5", "wkv6", "wkv7", "gla")},
    **{f"{name} of other sizes": partial(recurrence, name, *OTHERS) for name in ("wkv6", "wkv7")},
    "wkv7 and its output": partial(recurrence_and_output, *USUAL),
    "wkv7 and its output, heads of 128": partial(recurrence_and_output, (torch.bfloat16, 1, 41, 1, 128)),
    "decoding": decoding,
    "elementwise": elementwise,
}

if __name__ == "__main__":
    triton.runtime.driver.set_active(_Driver())
    JITFunction.__getitem__ = _compile
    CASES[sys.argv[1]]()
    print(json.dumps(COMPILED))
