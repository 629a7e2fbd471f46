"""What one layer moves through memory and keeps in a training step, counted without a device.

    python -m benchmarks.gpu.traffic

A layer above the first runs forward and backward as on a GPU under autocast, over tensors that have shapes
and dtypes but no numbers. Each operator reads its inputs once and writes its outputs once; views move
nothing. That is what operators move at least as they are called one after the other: `torch.compile` may
merge those of torch, and a kernel may read an input twice. What is kept is what the backward pass finds of
the forward pass, beside parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu.setting import FULL
from rookery.config import ModelConfig, preset
from rookery.models import RWKV
from rookery.ops.fused import operators
from rookery.ops.triton import READS

__all__ = ["LOW_RANK", "ONE_OF_EACH", "PRODUCTS", "Traffic", "of_layer"]

PRODUCTS, LOW_RANK = "matrix products", "matrix products of low rank"

# The largest rank of a published size is 480, and the least width 768.
_MOST_RANK = 512

ONE_OF_EACH = (preset("4", "1.5B"), preset("5.2", "1.5B"), preset("6", "1.6B"), preset("7", "1.5B"))
"""One size of each."""

# So many that what is read and written once for all tokens, the parameters, is a small part.
_TOKENS = (16, 4096)

# These move nothing, although they are no views for torch.
_FREE = ("_unsafe_view", "detach", "empty", "empty_like", "new_empty")


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Of one layer and one token, in bytes."""

    moved: Mapping[str, float]
    """Operator -> read and written, in the forward and the backward pass together."""

    calls: Mapping[str, int]
    """Operator -> how often it is called."""

    kept: float

    @property
    def beside_products(self) -> float:
        """Moved by all operators that are no matrix products."""
        return sum(count for name, count in self.moved.items() if name not in (PRODUCTS, LOW_RANK))


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and func.namespace != "prim" and name not in _FREE:
            tensors = [x for x in tree_leaves((args, kwargs, results)) if isinstance(x, Tensor)]
            if name == "mm":
                name = LOW_RANK if min(min(x.shape) for x in tensors) <= _MOST_RANK else PRODUCTS
            self.bytes[name] += sum(x.numel() * x.element_size() for x in tensors)
            self.calls[name] += 1
        return results


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Let operators take the tensors of a CPU for those of a GPU, and multiply in bfloat16."""
    modules = [import_module(f"rookery.ops.wkv{version}") for version in (4, 5, 6, 7)]
    with ExitStack() as stack:
        for table in (operators.SERVED, operators.TRITON_SERVED):
            stack.enter_context(patch.dict(table, cpu=READS))
        stack.enter_context(patch.object(operators, "NARROWS", ("cpu",)))
        for module in modules:
            rows = tuple(replace(row, devices=None) for row in module.IMPLEMENTATIONS)
            stack.enter_context(patch.object(module, "IMPLEMENTATIONS", rows))
        stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
        yield


def of_layer(config: ModelConfig) -> Traffic:
    """Count one layer above the first."""
    with FakeTensorMode(), _as_on_a_gpu():
        block = RWKV(replace(config, num_layers=2)).blocks[1]
        x = torch.empty(*_TOKENS, config.width, requires_grad=True)
        added = torch.empty(*_TOKENS, config.width, dtype=torch.bfloat16, requires_grad=True)
        v_first = torch.empty(*_TOKENS, config.attention_width, dtype=torch.bfloat16, requires_grad=True)
        others = {_memory(each) for each in (v_first, *block.parameters())}
        kept: dict[int, Tensor] = {}

        def keep(x: Tensor) -> Tensor:
            if _memory(x) not in others and not _of_parameter(x, block):
                kept[_memory(x)] = x
            return x

        with _Count() as count:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                results = block(x, added, None, v_first, implementation="triton")[:2]
            torch.autograd.backward(results, [torch.empty_like(each) for each in results])
            # Of RWKV-7: other layers have their part in the gradient of the first one's values.
            if v_first.grad is not None:
                v_first.grad + v_first.grad
    tokens = _TOKENS[0] * _TOKENS[1]
    return Traffic(
        moved={name: size / tokens for name, size in count.bytes.items()},
        calls=dict(count.calls),
        kept=sum(x.untyped_storage().nbytes() for x in kept.values()) / tokens,
    )


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _of_parameter(x: Tensor, block: nn.Module) -> bool:
    """Whether it is a matrix as autocast has rounded it, which is kept for all tokens and micro-batches."""
    return x.dim() == 2 and any(x.shape in (p.shape, p.shape[::-1]) for p in block.parameters())


def main() -> None:
    """Print what was counted, of all sizes."""
    sizes = {size: (of_layer(config), 2 * config.width) for size, config in FULL.models.items()}
    [(first, one), *_] = sizes.values()
    table = Table(title="A layer of RWKV-7 in training: KB for each token", title_justify="left")
    table.add_column("operator", no_wrap=True)
    for heading in ("calls", *sizes, "vectors"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, count in sorted(first.moved.items(), key=lambda item: -item[1]):
        if count >= one / 20:
            counts = [traffic.moved[name] for traffic, _ in sizes.values()]
            table.add_row(name, str(first.calls[name]), *_row(counts, one))
    table.add_section()
    table.add_row(
        "all beside products", "", *_row([traffic.beside_products for traffic, _ in sizes.values()], one)
    )
    table.add_row("kept", "", *_row([traffic.kept for traffic, _ in sizes.values()], one))
    console = Console(width=100)
    console.print(table)
    print("A vector is the channels of a token in bfloat16; the column has those of the first size.\n")
    console.print(_of_versions())


def _of_versions() -> Table:
    table = Table(title="A layer of each version: vectors for each token", title_justify="left")
    for heading in ("", "beside products", "products", "of low rank", "kept"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for config in ONE_OF_EACH:
        traffic, vector = of_layer(config), 2 * config.width
        counts = (
            traffic.beside_products,
            traffic.moved[PRODUCTS],
            traffic.moved.get(LOW_RANK, 0),
            traffic.kept,
        )
        table.add_row(f"RWKV-{config.version}", *(f"{count / vector:.1f}" for count in counts))
    return table


def _row(counts: Sequence[float], one: int) -> list[str]:
    return [*(f"{count / 1e3:.1f}" for count in counts), f"{counts[0] / one:.1f}"]


if __name__ == "__main__":
    main()
