"""The native engine: RWKV-4 to 7 on a CPU, without torch. What it computes is C++, in ``csrc/``."""

from __future__ import annotations

__all__: list[str] = []
