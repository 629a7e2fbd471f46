"""GGUF files of RWKV-6 and 7 in llama.cpp: its logits and its tokens are ours.

`make test-slow` installs llama-cpp-python, the extra ``peers``; building it takes five minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rookery import tokenizers
from rookery.checkpoints import Checkpoint, assemble, cast, load, save
from rookery.config import Version, sized
from rookery.models import RWKV, from_checkpoint, to_tensors
from rookery.native.quantize import quantize

pytestmark = pytest.mark.slow
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (the extra `peers`)")

TEXT = b"It was a dark and stormy night; the rain fell in torrents, except at occasional intervals."

# Largest difference of a logit, and the root of the mean square of all, in standard deviations of the logits.
# llama.cpp rounds the inputs of matrices to float16 or bfloat16 for such weights, and to 8 bits for blocks;
# ours here are float32.
BOUNDS = {
    "float32": (1e-4, 1e-5),
    "float16": (0.02, 0.003),
    "bfloat16": (0.15, 0.02),
    "q8": (0.3, 0.05),
    "q4": (0.3, 0.05),
}


def checkpoint_of(
    random_model: Callable[..., RWKV], version: Version, tokenizer: dict[str, Any] | None, **sizes: int
) -> Checkpoint:
    config = sized(version, **{"vocab_size": 256, "width": 128, "num_layers": 3, **sizes})
    return assemble(to_tensors(random_model(config, seed=5)), tokenizer=tokenizer)


def opened(path: Path) -> Any:
    return llama_cpp.Llama(str(path), n_ctx=256, n_batch=64, n_threads=1, logits_all=True, verbose=False)


def their_logits(path: Path, tokens: list[int]) -> np.ndarray:
    model = opened(path)
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


def our_logits(path: Path, tokens: list[int]) -> np.ndarray:
    model = from_checkpoint(load(path), dtype=torch.float32)
    with torch.no_grad():
        logits, _ = model(torch.tensor([tokens]), model.initial_state(1))
    return logits[0].numpy()


def assert_close(ours: np.ndarray, theirs: np.ndarray, kind: str) -> None:
    assert theirs.shape == ours.shape
    largest, mean = BOUNDS[kind]
    off = (theirs - ours) / ours.std()
    assert np.abs(off).max() <= largest
    assert np.sqrt(np.square(off).mean()) <= mean


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("version", ["6", "7"])
def test_logits(random_model: Callable[..., RWKV], tmp_path: Path, version: Version, kind: str) -> None:
    whole = checkpoint_of(random_model, version, {"kind": "bytes"})
    made = quantize(whole, kind) if kind in ("q8", "q4") else cast(whole, kind)
    save(made, tmp_path / "m.gguf")
    tokens = list(TEXT)
    ours, theirs = our_logits(tmp_path / "m.gguf", tokens), their_logits(tmp_path / "m.gguf", tokens)
    assert_close(ours, theirs, kind)


@pytest.mark.parametrize("version", ["6", "7"])
def test_a_model_of_one_layer_and_odd_sizes(
    random_model: Callable[..., RWKV], tmp_path: Path, version: Version
) -> None:
    sizes = {"num_layers": 1, "vocab_size": 300, "ffn_width": 224}
    save(checkpoint_of(random_model, version, None, **sizes), tmp_path / "m.gguf")
    tokens = [299, 0, 17, 256]
    ours, theirs = our_logits(tmp_path / "m.gguf", tokens), their_logits(tmp_path / "m.gguf", tokens)
    assert_close(ours, theirs, "float32")


@pytest.mark.parametrize("kind", ["world", "bytes", "chars"])
def test_tokens(random_model: Callable[..., RWKV], tmp_path: Path, kind: str) -> None:
    text = "Ünï cödé 🐦 '\"\\ \t\n\r\0 def f(x):\n    return 'it\\'s'  # 一二三\n\n" + TEXT.decode()
    spec = {"kind": kind}
    if kind == "chars":
        spec["alphabet"] = "".join(sorted(set(text)))
    tokenizer = tokenizers.from_spec(spec)
    sizes = {"vocab_size": tokenizer.vocab_size, "width": 64, "num_layers": 1}
    save(checkpoint_of(random_model, "7", spec, **sizes), tmp_path / "m.gguf")
    model = opened(tmp_path / "m.gguf")
    ids = model.tokenize(text.encode(), add_bos=False, special=False)
    assert ids == tokenizer.encode(text)
    assert model.n_vocab() == tokenizer.vocab_size
    assert model.detokenize(ids) == text.encode()
