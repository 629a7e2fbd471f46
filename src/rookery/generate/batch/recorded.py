"""Work recorded once and replayed: as a CUDA graph, one launch in place of hundreds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["new_pool", "record"]

# Libraries choose their kernels and take their workspaces in the first runs.
_WARM_UPS = 2


def new_pool(device: torch.device) -> Any:
    """Memory that graphs share whose results nobody reads from it, replayed one after another."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def record(
    run: Callable[[], None], *, warm_up: Callable[[], object], device: torch.device, pool: Any
) -> Callable[[], None]:
    """What does again all that ``run`` does on the device; where that knows no graphs, ``run`` itself.

    It keeps ``run``, and by that the memory which only ``run`` knows of.

    Args:
        run: reads and writes memory that stays where it is, and waits for nothing; it is called once, and
            what it would have done is only recorded.
        warm_up: does the same work first, twice, outside of the graph; it must change nothing that matters.
        device: where it runs.
        pool: where the graph has its own memory; what it leaves there is overwritten by other graphs.
    """
    if device.type != "cuda":
        warm_up()
        return run
    with torch.cuda.device(device):
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                warm_up()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Another thread may use the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            run()
    return _Recorded(graph, run)


class _Recorded:
    """A graph has addresses: whose memory they are must not be given back while it may be replayed."""

    def __init__(self, graph: torch.cuda.CUDAGraph, run: Callable[[], None]):
        self._graph, self._run = graph, run

    def __call__(self) -> None:
        self._graph.replay()
