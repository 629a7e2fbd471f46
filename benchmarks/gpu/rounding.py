"""How far the recurrences' kernels are from float64 by the rounding of tensor cores, computed without a GPU.

    python -m benchmarks.gpu.rounding

Triton's interpreter multiplies tiles in float32, and cuts off what it writes in bfloat16. Here it multiplies
the digits that tensor cores read: of TF32 the first ten after the binary point, of bfloat16 seven; and it
rounds to bfloat16 as a GPU does. Products are added up in float32, in numpy's order. So it says what the
choice of a precision costs; what a device gives is measured by `python -m benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter
from rich.console import Console
from rich.table import Table

from benchmarks.gpu.correctness import FORWARD, GRADIENT, STATE, errors
from benchmarks.gpu.tune import chosen

__all__ = ["main", "measure", "tensor_cores"]

# B, T, H: T is no multiple of a chunk.
_SHAPE = (2, 253, 1)

# Recurrence, inputs, what products are computed in (None: as by default), head size.
_CASES = [
    (recurrence, dtype, precision, K)
    for dtype, precisions in ((torch.bfloat16, (None, "bf16")), (torch.float32, (None, "tf32")))
    for recurrence in ("wkv7", "wkv6", "wkv5")
    for precision in precisions
    for K in ((64, 128) if precision is None else (64,))
]


@contextmanager
def tensor_cores() -> Iterator[None]:
    """Inside, interpreted kernels multiply and round as on a GPU."""
    builder: Any = interpreter.interpreter_builder
    convert: Any = interpreter._convert_float

    def dot(x: Any, y: Any, added: Any, precision: Any, _imprecise: int) -> Any:
        left, right = np.ascontiguousarray(x.data), np.ascontiguousarray(y.data)
        if x.dtype.name == "bf16":
            found = _widened(left) @ _widened(right)
        elif left.dtype == np.float32 and precision.name == "TF32":
            found = _tf32(left) @ _tf32(right)
        elif left.dtype == np.float32 and precision.name == "TF32x3":
            high, low = (_tf32(left), _tf32(right)), (_rest(left), _rest(right))
            found = low[0] @ high[1] + high[0] @ low[1] + high[0] @ high[1]
        else:
            found = left.astype(np.float32) @ right.astype(np.float32)
        return interpreter.TensorHandle(found + added.data, added.dtype.scalar)

    def rounded(x: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if source == tl.float32 and target == tl.bfloat16:
            found = torch.from_numpy(np.array(x, dtype=np.float32)).bfloat16()
            return found.view(torch.int16).numpy().view(np.uint16)
        return convert(x, source, target, mode)

    builder.create_dot = dot
    interpreter._convert_float = rounded
    try:
        yield
    finally:
        del builder.create_dot
        interpreter._convert_float = convert


def _tf32(x: np.ndarray) -> np.ndarray:
    """What tensor cores read of float32: they leave the last 13 bits out."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _rest(x: np.ndarray) -> np.ndarray:
    return _tf32(x - _tf32(x))


def _widened(bits: np.ndarray) -> np.ndarray:
    """Float32 of bfloat16, which the interpreter holds as bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def measure(
    recurrence: str, dtype: torch.dtype, precision: str | None, shape: tuple[int, int, int, int]
) -> dict[str, float]:
    """Errors relative to the norm, of inputs of B, T, H, K; see `benchmarks.gpu.correctness.errors`."""
    choices = {} if precision is None else {"precision": precision}
    random = torch.Generator().manual_seed(0)
    with tensor_cores(), chosen(recurrence, choices):
        return errors(recurrence, shape, dtype, "triton", random)


def main() -> None:
    """Print a table."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.rounding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    torch.set_num_threads(1)
    table = Table(title="Errors of the norm, by emulated rounding", title_justify="left")
    for heading in ("", "inputs", "products", "head size"):
        table.add_column(heading, no_wrap=True)
    for what in (FORWARD, STATE, GRADIENT):
        table.add_column(what.removesuffix(" error"), justify="right", no_wrap=True)
    for recurrence, dtype, precision, K in _CASES:
        found = measure(recurrence, dtype, precision, (*_SHAPE, K))
        kind = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
        shown = precision or {"bf16": "tf32 *", "fp32": "tf32x3 *"}[kind]
        table.add_row(recurrence, kind, shown, str(K), *(f"{error:.1e}" for error in found.values()))
    Console(width=110).print(table)
    print("* What is computed in by default.")


if __name__ == "__main__":
    main()
