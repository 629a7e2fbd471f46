"""What there is to measure on."""

from __future__ import annotations

from rookery.errors import ConfigError, MissingExtraError
from rookery.generate.backend import choose

__all__ = ["devices"]


def devices() -> list[str]:
    """The CPU, and the GPU where torch can use one."""
    try:
        # Without a name and a device the backends choose a GPU wherever there is one.
        return ["cpu"] if choose() == "native" else ["cpu", "cuda"]
    except (ConfigError, MissingExtraError):
        return ["cpu"]
