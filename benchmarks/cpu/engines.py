"""Our side, and the `rwkv` package: the same two verbs as ``LlamaCpp``, `advance` and `forget`."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from rookery import checkpoints, native
from rookery.checkpoints import dense
from rookery.checkpoints.schema import expected_shapes
from rookery.native import _engine
from rookery.native.weights import pack
from rookery.state import initial_state

__all__ = [
    "RWKV_INSTALL",
    "Engine",
    "Rookery",
    "RwkvPackage",
    "bytes_of_a_step",
    "operations_of_a_prompt",
    "rwkv_installed",
]

RWKV_INSTALL = "pip install rwkv==0.8.32"

Requests = Sequence[tuple[int, Sequence[int]]]


class Engine(Protocol):
    """What is measured: streams that read tokens."""

    def advance(self, requests: Requests) -> float:
        """Seconds of giving each stream its tokens, and of making the logits of each one's last."""
        ...

    def logits(self) -> np.ndarray:
        """Of the last token of the last call, [N] float32."""
        ...

    def forget(self) -> None:
        """Every stream starts anew."""
        ...


class Rookery:
    """The native engine."""

    def __init__(self, path: Path, *, threads: int, streams: int = 1, dtype: str | None = None):
        self.model = native.load(checkpoints.load(path), dtype=dtype, threads=threads)
        self._pool = initial_state(self.model.config, streams)
        self._logits = np.zeros((1, 1), np.float32)

    def advance(self, requests: Requests) -> float:
        """Seconds of one call."""
        start = time.perf_counter()
        self._logits = self.model.advance(requests, self._pool)
        return time.perf_counter() - start

    def logits(self) -> np.ndarray:
        """Of the last stream of the last call."""
        return self._logits[-1]

    def forget(self) -> None:
        """Every stream starts anew."""
        for part, fresh in zip(self._pool, initial_state(self.model.config), strict=True):
            part[:] = fresh


def rwkv_installed() -> bool:
    """Whether the `rwkv` package is there."""
    return importlib.util.find_spec("rwkv") is not None


class RwkvPackage:
    """The `rwkv` package in float32 on the CPU, compiled by TorchScript as it recommends."""

    def __init__(self, path: Path, *, threads: int):
        os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
        import torch

        torch.set_num_threads(threads)
        # It says hello on standard output.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            from rwkv.model import RWKV

            self._model = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")
        self._state = None
        self._logits = None

    def advance(self, requests: Requests) -> float:
        """Seconds of one call; there is one stream."""
        ((_, tokens),) = requests
        start = time.perf_counter()
        self._logits, self._state = self._model.forward(list(tokens), self._state)
        return time.perf_counter() - start

    def logits(self) -> np.ndarray:
        """Of the last token."""
        return self._logits.numpy()

    def forget(self) -> None:
        """The stream starts anew."""
        self._state = None


def operations_of_a_prompt(path: Path, tokens: int) -> int:
    """Products and sums of a prompt's matrix products; the head has one token to do."""
    shapes = expected_shapes(checkpoints.load(path).config)
    matrices = {
        name: shape
        for name, shape in shapes.items()
        if len(shape) == 2 and name != "emb.weight" and not name.endswith("r_k")
    }
    return 2 * sum(
        rows * columns * (1 if name == "head.weight" else tokens)
        for name, (rows, columns) in matrices.items()
    )


def bytes_of_a_step(path: Path, tokens: Sequence[int], *, threads: int, dtype: str | None = None) -> float:
    """Bytes of weights that one token of one RWKV-7 stream has read, on average over ``tokens``.

    All matrices with their scales, all vectors and one row of the embedding; but of the value matrix of
    channel mixing only the columns of inputs that are not zero, and the scales of their blocks. Those inputs
    are computed here again, from the inputs of channel mixing, which the state holds.
    """
    checkpoint = checkpoints.load(path)
    weights = pack(checkpoint, dtype=dtype, threads=threads)
    values = [weights.matrices[f"blocks.{layer}.ffn.value"] for layer in range(checkpoint.config.num_layers)]
    always = sum(matrix.bytes for matrix in weights.matrices.values()) - sum(each.bytes for each in values)
    always += sum(vector.nbytes for vector in weights.vectors.values())
    always += weights.embedding.nbytes // checkpoint.config.vocab_size
    model = native.load(checkpoint, dtype=dtype, threads=threads)
    state = initial_state(checkpoint.config)
    keys = [
        dense(checkpoint.tensors[f"blocks.{layer}.ffn.key.weight"]).astype(np.float32)
        for layer in range(len(values))
    ]
    shifts = [
        dense(checkpoint.tensors[f"blocks.{layer}.ffn.x_k"]).astype(np.float32).reshape(-1)
        for layer in range(len(values))
    ]
    sometimes = 0
    for token in tokens:
        before = state
        _, state = model.forward(np.array([[token]]), state)
        for layer, (value, key, shift) in enumerate(zip(values, keys, shifts, strict=True)):
            x, last = state.channel_shift[layer, 0], before.channel_shift[layer, 0]
            hidden = np.maximum(key @ (x + (last - x) * shift), 0) ** 2
            sometimes += _engine.bytes_read(value, hidden.astype(np.float32))
    return always + sometimes / len(tokens)
