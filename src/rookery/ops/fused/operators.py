"""What the fused operators share: which calls the kernels compute, dtypes of results, launches of Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rookery.ops import native, triton
from rookery.ops.precision import autocasts
from rookery.ops.triton import block, triton_kernels

__all__ = [
    "Tiles",
    "add_up",
    "kernels_of",
    "kernels_serve",
    "narrows",
    "power_of_two",
    "product_dtype",
    "triton_serves",
    "widest",
]

TRITON_SERVED: dict[str, tuple[torch.dtype, ...]] = {"cuda": triton.READS if triton.INSTALLED else ()}
"""The types of device that Triton's kernels run on, and the dtypes that these read."""

SERVED: dict[str, tuple[torch.dtype, ...]] = {
    "cpu": () if native.kernels is None else native.READS,
    **TRITON_SERVED,
}
"""The types of device that have kernels of either kind, likewise."""

NARROWS = ("cuda",)
"""The types of device for which `narrows` is true."""


def kernels_serve(*tensors: Tensor | None) -> bool:
    """Whether the kernels can compute with these: all on one type of device, each of a dtype they read."""
    return _served(SERVED, [x for x in tensors if x is not None])


def triton_serves(*tensors: Tensor) -> bool:
    """Likewise for operators that have kernels in Triton alone."""
    return _served(TRITON_SERVED, tensors)


def _served(table: dict[str, tuple[torch.dtype, ...]], tensors: Sequence[Tensor]) -> bool:
    device = tensors[0].device.type
    dtypes = table.get(device, ())
    return all(x.device.type == device and x.dtype in dtypes for x in tensors)


def widest(*tensors: Tensor) -> torch.dtype:
    """What torch would compute their product in: float32 where one of them is."""
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def narrows(device: str) -> bool:
    """Whether results are written in the dtype that they are read in, be it less than they are computed in.

    On a GPU, where these operators take as long as their memory traffic.
    """
    return device in NARROWS


def product_dtype(device: str) -> torch.dtype | None:
    """What autocast, where it is on, would round the results to before matrix products; None on a CPU."""
    if narrows(device) and autocasts(device):
        return torch.get_autocast_dtype(device)
    return None


def kernels_of(operator: str) -> Any:
    """The Triton kernels of an operator."""
    return triton_kernels(f"rookery.ops.fused.kernels.{operator}")


def power_of_two(count: int, most: int) -> int:
    """The least that holds so many, or `most`."""
    return min(most, 1 << (count - 1).bit_length())


class Tiles:
    """The tiles in which kernels over the heads of x, [B, T, A], go through it."""

    def __init__(self, x: Tensor, heads: int):
        self.rows = x.shape[0] * x.shape[1]
        head_size = x.shape[2] // heads
        wide = block(head_size)
        # Sixteen numbers for each thread of four warps: with more, few programs find room on a processor.
        tall = power_of_two(self.rows, max(1, 2048 // wide))
        self.blocks = -(-self.rows // tall)
        self.grid = (self.blocks * heads,)
        self.constants = {"K": head_size, "BR": tall, "BK": wide, "num_warps": 4}


def add_up(partials: Tensor, totals: Sequence[Tensor]) -> None:
    """Sum partials [blocks, n, channels] over blocks, always in the same order.

    Args:
        partials: float32.
        totals: n contiguous tensors of so many channels, written.
    """
    blocks, count, width = partials.shape
    columns = 64
    triton_kernels("rookery.ops.fused.kernels.parts").add_up[(-(-width // columns), count)](
        partials, tuple(totals), blocks, width, COUNT=count, ROWS=32, WIDTH=columns, num_warps=4
    )
