"""One token of a recurrence, the new state written over the old one: what decoding many streams needs.

The functions of ``rookery.ops`` never write into a state. Where a state stays in one place, as under a CUDA
graph, each step would have to copy it back: of 320 streams of a model of 1.5 billion parameters the states
are 4 GB, more than the weights. ``implementation="in place"`` reads and writes each number of it once.

It runs where Triton's kernels do, is never chosen by itself, and gives no gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from rookery.errors import ConfigError
from rookery.ops.dispatch import Implementation
from rookery.ops.in_place.triton import step4, step6, step7
from rookery.ops.triton import triton_row

__all__ = ["IN_PLACE", "in_place_row"]

IN_PLACE = "in place"
"""What ``implementation=`` forces it by."""

# RWKV-5's differs from RWKV-6's by the shape of its decay alone.
_STEPS: dict[str, Callable[..., Tensor]] = {"wkv4": step4, "wkv5": step6, "wkv6": step6, "wkv7": step7}


def in_place_row(operator: str) -> Implementation:
    """The row in the table of one of RWKV's recurrences."""
    step = _STEPS[operator]

    def run(*arguments: Tensor | None) -> tuple[Tensor, Tensor]:
        *inputs, state, starts = arguments
        assert state is not None
        tokens = max(x.shape[1] for x in inputs if x is not None and x.dim() == (3 if step is step4 else 4))
        if tokens != 1 or starts is not None or not state.is_contiguous():
            raise ConfigError(f"{operator}: in place is one token, without starts, and a contiguous state")
        return step(*inputs, state), state

    return replace(triton_row(run), name=IN_PLACE, in_place=True)
