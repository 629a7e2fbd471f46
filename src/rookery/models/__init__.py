"""RWKV-4, 5, 6 and 7 as torch modules.

    logits, state = model(tokens, state)       tokens [B, T] -> logits [B, T, N]

``rwkv4.py`` to ``rwkv7.py`` hold the time mixing of each version; all else is shared.
"""

from __future__ import annotations

from rookery.models.convert import from_checkpoint, to_tensors
from rookery.models.model import RWKV
from rookery.models.recipe import init_weights, parameter_groups

__all__ = ["RWKV", "from_checkpoint", "init_weights", "parameter_groups", "to_tensors"]
