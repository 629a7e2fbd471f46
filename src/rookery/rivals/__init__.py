"""Every rival of RWKV behind the interface of RWKV.

    config = sizes_for("gla", vocab_size=256, width=128, num_layers=4, parameters=1_000_000)
    model = build(config, seed=0)
    logits, state = model(tokens, state)       tokens [B, T] -> logits [B, T, N]

All share the blocks, RWKV-7's channel mixing, embedding, head and recipe; what mixes over time is the only
difference, and has one file for each (RWKV models are those of ``rookery.models``, each with its own channel
mixing). The state is a tree of tensors that goes in and comes out: cutting a text anywhere gives what the
whole gives.
"""

from __future__ import annotations

from rookery.rivals.config import RivalConfig
from rookery.rivals.files import load, load_tokenizer, save
from rookery.rivals.mixers import MIXERS, Mixer, build, sizes_for
from rookery.rivals.tree import leaves, map_state, state_bytes

__all__ = [
    "MIXERS",
    "Mixer",
    "RivalConfig",
    "build",
    "leaves",
    "load",
    "load_tokenizer",
    "map_state",
    "save",
    "sizes_for",
    "state_bytes",
]
