from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rookery.models import RWKV, init_weights
from rookery.tokenizers import named
from rookery.train.data import TokenStream, bytes_of_tokens, pack
from rookery.train.documents import Document
from rookery.train.evaluate import Score, evaluate, evaluate_documents

BYTES = bytes_of_tokens(named("bytes"))


@pytest.fixture(scope="module")
def model() -> RWKV:
    from rookery.config import sized

    model = RWKV(sized("7", vocab_size=256, width=32, num_layers=2, head_size=16))
    init_weights(model, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def nats(model: RWKV, tokens: np.ndarray) -> float:
    """Of all tokens but the first, from a new state."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    logits, _ = model(ids[None, :-1])
    return -float(logits[0].log_softmax(-1).gather(1, ids[1:, None]).sum())


def documents(*sizes: int) -> TokenStream:
    generator = np.random.default_rng(0)
    texts = ("".join(map(chr, generator.integers(32, 127, size))) for size in sizes)
    return pack([Document(str(n), text) for n, text in enumerate(texts)], named("bytes"))


@pytest.mark.parametrize("n", [2, 8, 9, 10, 37])
def test_windows_begin_with_a_new_state(model, n):
    tokens = np.random.default_rng(1).integers(1, 256, n).astype(np.uint16)
    stream = TokenStream(tokens, None, separated=False)
    score = evaluate(model, stream, context=8, batch=3, token_bytes=BYTES)
    assert score is not None
    assert (score.tokens, score.bytes) == (n - 1, n - 1)
    expected = sum(nats(model, tokens[start : start + 9]) for start in range(0, n - 1, 8))
    assert score.nats == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 4, 50])
@pytest.mark.parametrize("context", [5, 16, 1000])
def test_whole_documents_are_read_with_one_state(model, batch, context):
    stream = documents(3, 40, 17, 1, 8, 16, 15)
    score = evaluate_documents(model, stream, context=context, batch=batch, token_bytes=BYTES)
    assert score is not None
    # Each byte of each document is predicted, the first of them from the end of text.
    assert (score.tokens, score.bytes) == (100, 100)
    expected = sum(nats(model, document) for document in stream.documents())
    assert score.nats == pytest.approx(expected, rel=1e-5)


def test_one_text_is_one_document(model):
    tokens = np.random.default_rng(1).integers(1, 256, 37).astype(np.uint16)
    stream = TokenStream(tokens, None, separated=False)
    score = evaluate_documents(model, stream, context=8, batch=4, token_bytes=BYTES)
    assert score is not None
    assert score.nats == pytest.approx(nats(model, tokens), rel=1e-5)


def test_a_limit_takes_a_part(model):
    stream = documents(*[20] * 20)
    for measure in (evaluate, evaluate_documents):
        score = measure(model, stream, context=10, batch=4, token_bytes=BYTES, limit=100)
        assert score is not None
        assert 80 <= score.tokens <= 100


def test_it_can_be_stopped(model):
    answers = iter([False, True])
    stream = documents(100, 100)
    for measure in (evaluate, evaluate_documents):
        answers = iter([False, True])
        score = measure(
            model,
            stream,
            context=10,
            batch=2,
            token_bytes=BYTES,
            stopped=lambda answers=answers: next(answers),
        )
        assert score is None


def test_bits_per_byte_are_bits_over_bytes():
    score = Score(nats=2 * math.log(2), tokens=4, bytes=8) + Score(nats=6 * math.log(2), tokens=4, bytes=8)
    assert score.loss == pytest.approx(math.log(2))
    assert score.bits_per_byte == pytest.approx(0.5)
    assert Score(1.0, 1, 0).bits_per_byte is None
