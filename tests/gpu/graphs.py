"""CUDA graphs of the stand-in for a GPU: what was recorded is done again, over the same memory.

As on a GPU, recording does nothing: what operators would have written is as it was, and what they return
holds NaN until the graph is replayed. What waits for the device is refused, and so are copies between it and
the CPU. Work on the CPU is done once, while recording, and is no part of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

# The result, or its shape, is known to the CPU only once it has been computed.
_WAIT = ("_local_scalar_dense", "equal", "masked_select", "nonzero", "_unique2", "unique_dim")

# They return memory without values.
_EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


def refuse_while_recording(what: str) -> None:
    """As CUDA does."""
    if isinstance(_get_current_dispatch_mode(), _Recording):
        _refuse(what)


class Graph:
    """In place of ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self._work: list[Callable[[], object]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._results: list[Tensor] = []

    def replay(self) -> None:
        # Not what torch sees: tensors of either kind may be written.
        with torch.inference_mode():
            for again in self._work:
                again()

    def take(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record an operator of torch, and return memory for what it returns."""
        name = func.overloadpacket.__name__
        given = _tensors((args, kwargs))
        if any(x.is_cuda for x in given):
            _refuse_waiting(name, args, kwargs)
        written = _written(func, args, kwargs)
        self._keep(written)
        made = func(*args, **kwargs)
        results = _new(made, given)
        if written or (results and name not in _EMPTY):
            self._results += results

            def again() -> None:
                for result, each in zip(results, _new(func(*args, **kwargs), given), strict=True):
                    result.copy_(each)

            self._work.append(again)
        return made

    def take_launch(self, launch: Callable[[], None], tensors: list[Tensor]) -> None:
        """Record a kernel, which may write any of its tensors."""
        self._keep(tensors)
        with _disable_current_modes():
            launch()
        self._work.append(launch)

    def end(self) -> None:
        """Nothing has happened."""
        with torch.inference_mode():
            for now, before in self._before.values():
                now.copy_(before)
            for result in self._results:
                if result.is_floating_point():
                    result.fill_(torch.nan)
        self._before, self._results = {}, []

    def _keep(self, tensors: list[Tensor]) -> None:
        for x in tensors:
            storage = x.untyped_storage()
            if x.is_cuda and storage._cdata not in self._before:
                with _disable_current_modes():
                    whole = torch.empty(0, dtype=torch.uint8, device=x.device).set_(storage)
                    self._before[storage._cdata] = (whole, whole.clone())


class _Recording(TorchDispatchMode):
    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Without autograd these come as they are, and most of them are views or nothing.
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                return func.decompose(*args, **kwargs)
        return self.graph.take(func, args, kwargs)


@contextmanager
def recording(graph: Graph, pool: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
    """In place of ``torch.cuda.graph``."""
    try:
        with _Recording(graph):
            yield
    finally:
        graph.end()


def watch_launches() -> None:
    """Let kernels that are launched by themselves, not as operators of torch, be recorded as well."""
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def launch(self: Any, *args: Any, **options: Any) -> None:
        tensors = _tensors((args, options))
        if any(not x.is_cuda for x in tensors):
            raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        mode = _get_current_dispatch_mode()
        if isinstance(mode, _Recording):
            mode.graph.take_launch(lambda: run(self, *args, **options), tensors)
        else:
            run(self, *args, **options)

    InterpretedFunction.run = launch


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _new(made: Any, given: list[Tensor]) -> list[Tensor]:
    """On the device, and no views or results in place."""
    known = {x.untyped_storage()._cdata for x in given}
    return [x for x in _tensors(made) if x.is_cuda and x.untyped_storage()._cdata not in known]


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += _tensors(args[i] if i < len(args) else kwargs.get(argument.name))
    return found


def _refuse_waiting(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    by_mask = name in ("index", "index_put_", "_index_put_impl_")
    if name in _WAIT:
        _refuse(name)
    if name in ("copy_", "_to_copy"):
        other = args[1].device if name == "copy_" else kwargs.get("device") or args[0].device
        if other.type != args[0].device.type:
            _refuse("a copy between devices")
    # Of a tensor that torch has made of Python's numbers.
    if name == "lift_fresh":
        _refuse("a copy from the CPU")
    # Where a mask is true is found out first.
    if by_mask and any(x.dtype == torch.bool for x in _tensors(args[1])):
        _refuse(f"{name} by a mask")


def _refuse(what: str) -> None:
    raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
