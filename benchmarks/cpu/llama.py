"""llama.cpp as the other side: its C interface by llama-cpp-python, so that only its own work is timed."""

from __future__ import annotations

import ctypes
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["INSTALL", "LlamaCpp", "installed"]

INSTALL = "pip install llama-cpp-python==0.3.36"

# The whole prompt is one batch, and one micro-batch.
BATCH = 512


def installed() -> bool:
    """Whether llama-cpp-python is there."""
    return importlib.util.find_spec("llama_cpp") is not None


class LlamaCpp:
    """One model file with its context. Its own choices of kernels and repacking are left as they are."""

    def __init__(self, path: Path, *, threads: int, streams: int = 1):
        import llama_cpp

        self._library = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        parameters = llama_cpp.llama_context_default_params()
        # A recurrent model keeps no context, but the number limits what a sequence may be told.
        parameters.n_ctx = 1 << 16
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_seq_max = streams
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context for {path}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._seen = [0] * streams

    def advance(self, requests: Sequence[tuple[int, Sequence[int]]]) -> float:
        """Seconds of one call that gives each stream its tokens; the logits of each one's last are made."""
        batch, count = self._batch, 0
        for stream, tokens in requests:
            for index, token in enumerate(tokens):
                batch.token[count] = token
                batch.pos[count] = self._seen[stream] + index
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = stream
                batch.logits[count] = index == len(tokens) - 1
                count += 1
            self._seen[stream] += len(tokens)
        batch.n_tokens = count
        start = time.perf_counter()
        failed = self._library.llama_decode(self._context, batch)
        self._library.llama_synchronize(self._context)
        seconds = time.perf_counter() - start
        if failed:
            raise RuntimeError(f"llama_decode returned {failed}")
        return seconds

    def logits(self) -> np.ndarray:
        """Of the last token of the last call, [N] float32."""
        values = self._library.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(values, (self._vocab_size,)).copy()

    def forget(self) -> None:
        """Every stream starts anew."""
        self._library.llama_memory_clear(self._memory, True)
        self._seen = [0] * len(self._seen)

    def close(self) -> None:
        """Free its memory."""
        self._library.llama_batch_free(self._batch)
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)
