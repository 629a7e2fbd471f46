"""Loss, bits per byte and perplexity by position: against plain computations, for ours and transformers'."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rookery.checkpoints import Checkpoint
from rookery.config import sized
from rookery.errors import CheckpointError, ConfigError, DataError, TokenizerError
from rookery.evaluate.cache import RequestCache
from rookery.evaluate.likelihood import Pair
from rookery.evaluate.pool import log_softmax
from rookery.evaluate.text import RookeryReader, measure_text, windows
from rookery.generate import LanguageModel
from rookery.generate.backend import open_backend
from rookery.models import to_tensors
from rookery.tokenizers import ByteTokenizer
from rookery.train.documents import Document

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

DOCUMENTS = [
    Document("a.txt", "A rook is a large bird, black all over. " * 5),
    Document("b.txt", "Städte haben Dohlen; fields have rooks."),
]


@pytest.fixture(scope="module")
def model(random_model) -> LanguageModel:
    config = sized("7", vocab_size=256, width=64, num_layers=2)
    checkpoint = Checkpoint(config=config, tensors=to_tensors(random_model(config)))
    return LanguageModel(open_backend(checkpoint, name="native", threads=1), ByteTokenizer())


@pytest.fixture(scope="module")
def neox(tmp_path_factory) -> Path:
    """A GPT-NeoX as Pythia is one, over bytes, with 64 positions."""
    folder = tmp_path_factory.mktemp("neox")
    torch.manual_seed(1)
    config = transformers.GPTNeoXConfig(
        vocab_size=260,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<|endoftext|>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder


def plain(model: LanguageModel, text: str) -> np.ndarray:
    ids = [0, *text.encode()]
    logits, _ = model(ids[:-1])
    return log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]]


def test_a_text_read_to_its_end(model: LanguageModel):
    result = measure_text(RookeryReader(model, name="ours"), DOCUMENTS)
    wanted = [plain(model, document.text) for document in DOCUMENTS]
    size = sum(map(len, wanted))
    nats = -sum(each.sum() for each in wanted)
    assert (result.documents, result.tokens, result.bytes) == (2, size, size)
    assert result.loss == pytest.approx(nats / size, abs=1e-4)
    assert result.bits_per_byte == pytest.approx(nats / size / math.log(2), abs=1e-4)
    assert result.perplexity == pytest.approx(math.exp(nats / size), rel=1e-3)
    assert [(each.begin, each.end, each.tokens) for each in result.buckets] == [
        (0, 64, 64 + len(wanted[1])),
        (64, 128, 64),
        (128, 200, 72),
    ]
    assert result.buckets[0].loss == pytest.approx(
        -(wanted[0][:64].sum() + wanted[1].sum()) / (64 + len(wanted[1])), abs=1e-4
    )
    assert sum(each.nats for each in result.buckets) == pytest.approx(result.nats)
    assert result.setting["first_token"] == {"id": 0, "name": "end-of-text"}
    assert result.to_dict()["by_position"][2]["perplexity"] == result.buckets[2].perplexity


def test_windows_forget(model: LanguageModel):
    """A window of 20 moved on by 20: every piece of 20 tokens is read anew, after one token."""
    text = DOCUMENTS[0].text
    result = measure_text(RookeryReader(model), DOCUMENTS[:1], window=20, stride=20)
    ids = [0, *text.encode()]
    nats = 0.0
    for begin in range(0, len(text), 20):
        piece = ids[begin : begin + 21]
        nats -= log_softmax(model(piece[:-1])[0])[np.arange(len(piece) - 1), piece[1:]].sum()
    assert result.nats == pytest.approx(nats, abs=1e-3)
    assert result.setting["window"] == result.setting["stride"] == 20


@given(st.integers(1, 50), st.integers(1, 20), st.data())
def test_windows_cover_every_token_once(count: int, window: int, data: st.DataObject):
    stride = data.draw(st.one_of(st.none(), st.integers(1, window)))
    tokens = list(range(1, count + 1))
    pairs = windows(tokens, 0, window, stride)
    assert [token for pair in pairs for token in pair.continuation] == tokens
    whole = (0, *tokens)
    for pair in pairs:
        read = len(pair.context) + len(pair.continuation) - 1
        assert 1 <= read <= window
        place = pair.continuation[0]
        assert pair.context == whole[place - len(pair.context) : place]
    assert windows(tokens, 0, None) == [Pair((0,), tuple(tokens))]


def test_a_model_of_transformers(neox: Path):
    from rookery.evaluate.transformers_model import TransformersReader

    reader = TransformersReader(str(neox), threads=1)
    assert reader.limit == 64
    result = measure_text(reader, DOCUMENTS)
    other = transformers.GPTNeoXForCausalLM.from_pretrained(neox)
    tokenizer = transformers.AutoTokenizer.from_pretrained(neox)
    nats = 0.0
    for document in DOCUMENTS:
        ids = [0, *tokenizer(document.text)["input_ids"]]
        place = 1
        while place < len(ids):
            begin, end = (0, min(65, len(ids))) if place == 1 else (0, min(place + 32, len(ids)))
            begin = max(0, end - 65)
            with torch.no_grad():
                logits = other(torch.tensor([ids[begin : end - 1]])).logits[0]
            values = log_softmax(logits.numpy())
            nats -= sum(values[i - 1 - begin, ids[i]] for i in range(place, end))
            place = end
    assert result.nats == pytest.approx(nats, rel=1e-5)
    assert result.bytes == sum(len(document.text.encode()) for document in DOCUMENTS)
    assert result.setting["window"] == 64
    assert result.setting["type"] == "gpt_neox"
    # Batches of padded rows give what single rows give.
    pairs = [Pair((0, 5, 6), (7, 8)), Pair((0,), (1, 2, 3, 4, 5, 6)), Pair((3, 4), (5,))]
    for pair, scores in zip(pairs, reader.score(pairs), strict=True):
        [alone] = reader.score([pair])
        np.testing.assert_allclose(scores.log_probabilities, alone.log_probabilities, atol=1e-5, rtol=0)


def test_rivals_that_cannot_read(neox: Path, tmp_path: Path, monkeypatch):
    from rookery.evaluate.transformers_model import TransformersReader

    reader = TransformersReader(str(neox), threads=1)
    with pytest.raises(DataError, match=r"70 tokens are more than the 64 positions"):
        reader.score([Pair((1,) * 60, (1,) * 11)])
    with pytest.raises(ConfigError, match="not a window of 65"):
        measure_text(reader, DOCUMENTS, window=65)
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        TransformersReader(str(tmp_path))

    whole = reader._model.forward

    def small(ids: torch.Tensor, **options: object) -> object:
        if ids.shape[1] > 50:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 TB")
        return whole(ids, **options)

    monkeypatch.setattr(reader._model, "forward", small)
    result = measure_text(reader, DOCUMENTS)
    assert result.documents == 1
    [skipped] = result.skipped
    assert skipped["document"] == "a.txt"
    assert "more than memory has room for" in skipped["reason"]
    with pytest.raises(DataError, match="no document could be scored"):
        measure_text(reader, DOCUMENTS[:1])


def test_documents_of_an_earlier_sitting(model: LanguageModel, tmp_path: Path):
    whole = measure_text(RookeryReader(model), DOCUMENTS)
    read: list[int] = []

    def stop_at_the_second(done: int, total: int) -> None:
        read.append(done)
        if done > 200:
            raise KeyboardInterrupt

    path = tmp_path / "requests.jsonl"
    with RequestCache(path, {}) as cache, pytest.raises(KeyboardInterrupt):
        measure_text(RookeryReader(model), DOCUMENTS, cache=cache, report=stop_at_the_second)
    with RequestCache(path, {}) as cache:
        again = measure_text(RookeryReader(model), DOCUMENTS, cache=cache)
        assert cache.found == 1
        assert again.buckets == whole.buckets
        # Another window is another measurement.
        other = measure_text(RookeryReader(model), DOCUMENTS, cache=cache, window=20)
        assert cache.found == 1
    assert other.nats != again.nats == whole.nats


def test_what_cannot_be_done(model: LanguageModel):
    with pytest.raises(TokenizerError, match="--tokenizer"):
        RookeryReader(LanguageModel(model.backend))
    with pytest.raises(DataError, match="has no tokens"):
        measure_text(RookeryReader(model), [Document("empty.txt", "")])
    for window, stride in [(0, None), (10, 11), (10, 0)]:
        with pytest.raises(ConfigError, match="cannot move on"):
            measure_text(RookeryReader(model), DOCUMENTS, window=window, stride=stride)


def test_reports_reach_the_total(model: LanguageModel):
    reports: list[tuple[int, int]] = []
    measure_text(RookeryReader(model), DOCUMENTS, report=lambda *each: reports.append(each))
    done, totals = zip(*reports, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == totals[-1] == sum(len(document.text.encode()) for document in DOCUMENTS)
