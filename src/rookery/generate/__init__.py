"""Text from a model: loading, sampling, sessions.

    model = load("model.safetensors")
    for piece in model.stream("It was a", max_tokens=100, temperature=0.8, seed=1):
        print(piece, end="", flush=True)

What runs the model is a ``Backend``, chosen from a table by device and by what is installed.
"""

from __future__ import annotations

from rookery.generate.backend import BACKENDS, DTYPES, Backend, choose
from rookery.generate.chat import Chat, ChatTemplate
from rookery.generate.language_model import LanguageModel, load
from rookery.generate.sampling import Sampler, SamplingParams, sample_batch
from rookery.generate.session import MAX_UNDO, Session

__all__ = [
    "BACKENDS",
    "DTYPES",
    "MAX_UNDO",
    "Backend",
    "Chat",
    "ChatTemplate",
    "LanguageModel",
    "Sampler",
    "SamplingParams",
    "Session",
    "choose",
    "load",
    "sample_batch",
]
