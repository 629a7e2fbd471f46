"""The process that measures one point: ``python -m rookery.evaluate.bench.worker``, a request on stdin.

It is a fresh one for each point, so that memory of the point before does not count, and a point that takes
too much or too long can be ended.
"""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from rookery import checkpoints
from rookery.checkpoints import Checkpoint
from rookery.config import ModelConfig, sized
from rookery.evaluate.bench.families import FAMILIES, rwkv_config
from rookery.evaluate.bench.memory import peak_bytes, release_freed, reset_peak, resident_bytes
from rookery.evaluate.bench.point import Point

__all__ = ["ANSWER", "Subject", "main", "measure", "random_checkpoint"]

ANSWER = "rookery-bench:"
"""What the line of the answer begins with: libraries write to standard output as well."""

_WARM_UP, _WARM_UP_STEPS = 16, 3

# A smallest model of transformers has these, where it has them at all.
_SMALL = {
    "num_hidden_layers": 1,
    "n_layer": 1,
    "num_attention_heads": 2,
    "n_head": 2,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "intermediate_size": 32,
    "ffn_dim": 32,
    "vocab_size": 64,
}


class Subject(ABC):
    """A model that reads tokens.

    When it is made, a smallest one of its kind has run, so that libraries, which load parts of themselves
    when they are first used, are there before memory is looked at.
    """

    attention: str | None = None

    @abstractmethod
    def load(self) -> None:
        """Have the weights."""

    @abstractmethod
    def read(self, tokens: list[int]) -> int:
        """Read on; returns the likeliest next token, so that all is computed when it returns."""

    @abstractmethod
    def forget(self) -> None:
        """A new stream."""

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Tokens that it knows."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """How many it has."""


class Rookery(Subject):
    """A model in one of this package's backends."""

    def __init__(self, point: Point):
        self.point = point
        self.backend: Any = None
        self.state: Any = None
        self.count = 0
        version = FAMILIES[point.family].version if point.family in FAMILIES else "7"
        assert version is not None
        heads = {} if version == "4" else {"head_size": 32}
        small = sized(version, vocab_size=64, width=32, num_layers=1, **heads)
        self._open(random_checkpoint(small, point.dtype))
        self.read([1, 2])

    def load(self) -> None:
        """From the file, or random."""
        point = self.point
        if point.family == "file":
            checkpoint = checkpoints.load(point.size)
        else:
            checkpoint = random_checkpoint(rwkv_config(point.family, point.size), point.dtype)
        self.count = sum(tensor.size for tensor in checkpoint.tensors.values())
        self._open(checkpoint)

    def _open(self, checkpoint: Checkpoint) -> None:
        from rookery.generate.backend import open_backend

        point = self.point
        self.backend = open_backend(
            checkpoint, name=point.backend, device=point.device, dtype=point.dtype, threads=point.threads
        )
        self.forget()

    def read(self, tokens: list[int]) -> int:
        """Through the backend, with a carried state."""
        logits, self.state = self.backend.forward(np.array([tokens]), self.state, last_only=True)
        return int(logits[0, -1].argmax())

    def forget(self) -> None:
        """The initial state."""
        self.state = self.backend.initial_state()

    @property
    def vocabulary(self) -> int:
        """Of the configuration."""
        return self.backend.config.vocab_size

    @property
    def parameters(self) -> int:
        """Of the checkpoint."""
        return self.count


class Transformers(Subject):
    """A model of transformers with random weights, on one of its caches."""

    def __init__(self, point: Point):
        import torch
        import transformers

        torch.set_num_threads(point.threads)
        self.torch, self.transformers = torch, transformers
        self.point = point
        self.model: Any = None
        self.cache: Any = None
        sizes = FAMILIES[point.family].sizes[point.size]
        self._make({name: min(value, _SMALL.get(name, value)) for name, value in sizes.items()})
        self.read([1, 2])
        self.forget()

    def load(self) -> None:
        """Random weights of the published shape; positions reach as far as the context wants."""
        self._make(FAMILIES[self.point.family].sizes[self.point.size])

    def _make(self, sizes: Mapping[str, Any]) -> None:
        point, kind = self.point, FAMILIES[self.point.family].model_type
        reach = (
            {} if kind == "bloom" else {"max_position_embeddings": max(2048, point.context + point.tokens)}
        )
        config = self.transformers.AutoConfig.for_model(kind, **sizes, **reach)
        dtype = getattr(self.torch, point.dtype)
        with self.torch.device(point.device):
            self.model = self.transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        self.model = self.model.to(point.device).eval().requires_grad_(requires_grad=False)
        self.attention = self.model.config._attn_implementation

    def read(self, tokens: list[int]) -> int:
        """With the cache of what was read before."""
        ids = self.torch.tensor([tokens], device=self.point.device)
        with self.torch.inference_mode():
            out = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return int(out.logits[0, -1].argmax())

    def forget(self) -> None:
        """Without a cache."""
        self.cache = None

    @property
    def vocabulary(self) -> int:
        """Of the configuration."""
        return self.model.config.vocab_size

    @property
    def parameters(self) -> int:
        """Each tensor once."""
        return sum(each.numel() for each in self.model.parameters())


def random_checkpoint(config: ModelConfig, dtype: str) -> Checkpoint:
    """Weights that cost what trained ones do: no zeros, no denormal numbers, norms near 1."""
    # Blocks of 8 and 4 bits are made of 16.
    kind = np.dtype(np.float32) if dtype == "float32" else checkpoints.DTYPES["bfloat16"]
    tile = np.random.default_rng(0).normal(0, 0.02, 1_000_003).astype(kind)
    tensors = {}
    for name, shape in checkpoints.expected_shapes(config).items():
        tensor = np.empty(math.prod(shape), kind)
        if ".ln" in name or name.startswith("ln"):
            tensor[:] = 1.0 if name.endswith("weight") else 0.0
        else:
            # Drawing every weight would take longer than what is measured.
            for first in range(0, tensor.size, tile.size):
                part = tensor[first : first + tile.size]
                part[:] = tile[: part.size]
        tensors[name] = tensor.reshape(shape)
    return Checkpoint(config=config, tensors=tensors)


def measure(point: Point, subject: Subject) -> dict[str, Any]:
    """The figures of one point, by the names of ``Row``."""
    gc.collect()
    release_freed()
    before = resident_bytes()
    began = time.perf_counter()
    subject.load()
    load_s = time.perf_counter() - began
    load_peak = peak_bytes()
    gc.collect()
    release_freed()
    loaded = resident_bytes()
    reset = reset_peak()
    tokens = np.random.default_rng(1).integers(0, subject.vocabulary, point.context).tolist()
    # Not the whole prompt: it may take minutes. Pages are touched and code is chosen all the same.
    following = subject.read(tokens[:_WARM_UP])
    for _ in range(_WARM_UP_STEPS):
        following = subject.read([following])
    subject.forget()
    began = time.perf_counter()
    following = subject.read(tokens)
    first_token_s = time.perf_counter() - began
    steps = []
    for _ in range(point.tokens):
        began = time.perf_counter()
        following = subject.read([following])
        steps.append(time.perf_counter() - began)
    return {
        "parameters": subject.parameters,
        "attention": subject.attention,
        "load_s": load_s,
        "first_token_s": first_token_s,
        "tokens_per_s": 1 / statistics.median(steps),
        "before_bytes": before,
        "loaded_bytes": loaded,
        "load_peak_bytes": load_peak,
        "peak_bytes": peak_bytes() if reset else None,
        "gpu_peak_bytes": _gpu_peak() if point.device == "cuda" else None,
    }


def main() -> int:
    """Read a request, answer it."""
    request = json.load(sys.stdin)
    point = Point(**request["point"])
    # Nothing is fetched, and what libraries say is no answer.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    warnings.simplefilter("ignore")
    if request["memory"] is not None and point.device == "cpu":
        _limit(request["memory"])
    try:
        subject = (Transformers if point.backend == "transformers" else Rookery)(point)
        answer = measure(point, subject)
    except Exception as error:
        answer = {"skipped": _reason(error, request["memory"])}
    print(ANSWER + json.dumps(answer), flush=True)
    return 0


def _limit(memory: int) -> None:
    """Let the kernel refuse more memory, so that no other process is ended for it."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    except (ImportError, OSError, ValueError):
        pass


def _reason(error: Exception, memory: int | None) -> str:
    text = str(error).strip().splitlines()
    first = text[0] if text else type(error).__name__
    if isinstance(error, MemoryError) or "alloc" in first.lower() or "out of memory" in first.lower():
        limit = "" if memory is None else f" than the {memory / 1e9:.1f} GB that are allowed"
        return f"it needs more memory{limit}"
    return f"it failed: {type(error).__name__}: {first[:200]}"


def _gpu_peak() -> int:
    import torch

    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    sys.exit(main())
