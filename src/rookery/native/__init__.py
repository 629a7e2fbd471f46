"""The native engine: RWKV-4 to 7 on a CPU, without torch. What it computes is C++, in ``csrc/``.

model = load(rookery.checkpoints.load("model.safetensors"), dtype="q8")
logits, state = model.forward(tokens, state)
"""

from __future__ import annotations

from importlib import import_module

from rookery.errors import MissingExtraError

try:
    import_module("rookery.native._engine")  # what the modules below need
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "The native engine was not built, and this needs it: pip install . in the source's folder"
    ) from error

from rookery.native.model import MAX_THREADS, NativeModel, load

__all__ = ["MAX_THREADS", "NativeModel", "load"]
