"""Steps of the recurrences in place, by Triton kernels (``kernels.py``), as ``torch.library`` operators."""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.ops.triton import DEVICES, block, triton_kernels, value_block

__all__ = ["step4", "step6", "step7"]

# Value channels of a program: of one warp, and at most.
_OF_WARP, _WIDE = 16, 64
# Channels of RWKV-4 in one program.
_CHANNELS = 256


def _columns(heads: int, value: int) -> int:
    return min(value_block(heads, value), _WIDE)


@torch.library.custom_op("rookery::wkv4_step", mutates_args=("state",), device_types=DEVICES)
def step4(log_w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor) -> Tensor:
    """log_w, u [A]; k, v [B, 1, A]; state [B, 3, A] float32, written into. Gives y [B, 1, A]."""
    kernels = triton_kernels("rookery.ops.in_place.kernels")
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    B, _, A = state.shape
    log_w, u, k, v = (x.contiguous() for x in (log_w, u, k, v))
    kernels.step4[(B, -(-A // _CHANNELS))](log_w, u, k, v, state, y, A, CHANNELS=_CHANNELS, num_warps=4)
    return y


@step4.register_fake
def _(log_w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


@torch.library.custom_op("rookery::wkv6_step", mutates_args=("state",), device_types=DEVICES)
def step6(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, u: Tensor, state: Tensor) -> Tensor:
    """r, k [B, 1, H, K]; log_w so or [H, K]; v [B, 1, H, V]; u [H, K]; state [B, H, K, V], written into."""
    kernels = triton_kernels("rookery.ops.in_place.kernels")
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    B, H, K, V = state.shape
    r, log_w, k, v, u = (x.contiguous() for x in (r, log_w, k, v, u))
    columns = _columns(B * H, V)
    kernels.step6[(B * H, -(-V // columns))](
        *(r, log_w, k, v, u, state, y, H, K, V),
        BK=block(K),
        BV=columns,
        SHARED=log_w.dim() == 2,
        num_warps=columns // _OF_WARP,
    )
    return y


@step6.register_fake
def _(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, u: Tensor, state: Tensor) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


@torch.library.custom_op("rookery::wkv7_step", mutates_args=("state",), device_types=DEVICES)
def step7(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> Tensor:
    """r, log_w, k, a, b [B, 1, H, K]; v [B, 1, H, V]; state [B, H, K, V], written into. Gives y as v."""
    kernels = triton_kernels("rookery.ops.in_place.kernels")
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    B, H, K, V = state.shape
    r, log_w, k, v, a, b = (x.contiguous() for x in (r, log_w, k, v, a, b))
    columns = _columns(B * H, V)
    kernels.step7[(B * H, -(-V // columns))](
        *(r, log_w, k, v, a, b, state, y, K, V), BK=block(K), BV=columns, num_warps=columns // _OF_WARP
    )
    return y


@step7.register_fake
def _(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)
