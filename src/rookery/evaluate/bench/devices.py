"""What there is to measure on."""

from __future__ import annotations

__all__ = ["devices"]


def devices() -> list[str]:
    """The CPU, and the GPU where torch can use one."""
    try:
        from rookery.generate import torch_backend
    except ImportError:
        return ["cpu"]
    return ["cpu", "cuda"] if torch_backend.has_cuda() else ["cpu"]
