"""The step of few streams is the model's step, by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from rookery.config import sized
from rookery.errors import ConfigError
from rookery.generate import SamplingParams
from rookery.generate.batch import BatchDecoder, few, recorded, steps
from rookery.generate.batch.few import few_streams_step, serves, step, weights_of
from rookery.generate.batch.steps import StepRecorder
from rookery.generate.torch_backend import TorchBackend
from rookery.models import to_tensors
from rookery.models.quantized import QuantizedLinear, quantized_from_checkpoint
from rookery.native.quantize import quantize
from rookery.ops.triton import DEVICES
from rookery.state import State

pytestmark = pytest.mark.usefixtures("watched_kernels")

torch.set_num_threads(1)

DEVICE = DEVICES[0]
VOCABULARY = 37
# Ranks and widths that fill no block, and ranks beyond what they are rounded up to.
RANKS = {"decay_rank": 5, "iclr_rank": 7, "value_rank": 33, "gate_rank": 11}
SHAPES = {
    "heads of 16": {"width": 48, "head_size": 16, "num_layers": 3, "ffn_width": 70},
    "a head of 64": {"width": 64, "head_size": 64, "num_layers": 2, "ffn_width": 100},
    "heads of 20": {"width": 40, "head_size": 20, "num_layers": 2, "ffn_width": 33},
    # More columns than a tile of float32 has: 512.
    "wide": {"width": 520, "head_size": 104, "num_layers": 1, "ffn_width": 1030},
}


@pytest.fixture
def tall_tiles(monkeypatch):
    """More rows in a tile than on a device: the interpreter takes as long for few of them as for many."""
    monkeypatch.setattr(step, "ROWS", 32)


def model_of(random_model, shape: str = "heads of 16", dtype: torch.dtype = torch.float32, seed: int = 0):
    config = sized("7", vocab_size=VOCABULARY, **SHAPES[shape], **RANKS)
    return random_model(config, seed, dtype).requires_grad_(False).to(DEVICE)


def random_state(model, streams: int) -> State[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    empty = model.initial_state(streams)
    return State(*(torch.randn(part.shape, generator=generator).to(part) for part in empty))


def random_tokens(count: int, streams: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(VOCABULARY, (count, streams), generator=generator).to(DEVICE)


def copied(state: State[torch.Tensor]) -> State[torch.Tensor]:
    return State(*(part.clone() for part in state))


def run(model, tokens: torch.Tensor, state: State[torch.Tensor]) -> tuple[torch.Tensor, State[torch.Tensor]]:
    """Logits [T, M, N] after each of tokens [T, M], and the state after all."""
    state, ids = copied(state), torch.empty_like(tokens[0])
    logits = torch.empty(len(ids), VOCABULARY, dtype=model.emb.weight.dtype, device=DEVICE)
    read = few_streams_step(weights_of(model), ids, state, logits)
    made = []
    for each in tokens:
        ids.copy_(each)
        read()
        made.append(logits.clone())
    return torch.stack(made), state


@pytest.mark.parametrize(
    ("shape", "streams"), [("heads of 16", 1), ("a head of 64", 2), ("heads of 20", 4), ("wide", 1)]
)
def test_a_step_is_the_models_step(random_model, tall_tiles, shape, streams):
    model = model_of(random_model, shape)
    tokens, before = random_tokens(1 if shape == "wide" else 2, streams), random_state(model, streams)
    got, after = run(model, tokens, before)
    wanted, at_end = model(tokens.T, before)
    torch.testing.assert_close(got, wanted.transpose(0, 1), rtol=1e-5, atol=1e-5)
    for part, expected in zip(after, at_end, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5)
    # And that of the operators one by one, in place.
    layers = model.split_state(state := copied(before))
    for each, logits in zip(tokens, got, strict=True):
        torch.testing.assert_close(logits, model.step_in_place(each, layers), rtol=1e-5, atol=1e-5)
    for part, expected in zip(after, state, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5)


def test_rows_of_a_program_change_no_bit(random_model, monkeypatch):
    """One tile, or several one below the other, as where matrices are large; few rows of a tile, or many."""
    model = model_of(random_model, "heads of 20")
    tokens, before = random_tokens(1, 1), random_state(model, 1)
    found = []
    for rows, programs, tiles in ((8, 256, 1), (8, 1, 4), (32, 256, 1)):
        monkeypatch.setattr(step, "ROWS", rows)
        monkeypatch.setattr(step, "PROGRAMS", programs)
        assert step.row_tiles(VOCABULARY, 1) == tiles
        logits, after = run(model, tokens, before)
        found.append((logits, *after))
    wanted, _ = model(tokens.T, before)
    torch.testing.assert_close(found[0][0], wanted.transpose(0, 1), rtol=1e-5, atol=1e-5)
    for other in found[1:]:
        assert all(torch.equal(part, expected) for part, expected in zip(other, found[0], strict=True))


def test_streams_do_not_see_each_other(random_model, tall_tiles):
    model = model_of(random_model, "heads of 20")
    tokens, before = random_tokens(1, 4), random_state(model, 4)
    before.wkv[:, 3] = torch.nan
    together, after = run(model, tokens, before)
    assert together[:, 3].isnan().all()
    for streams in ([0], [1, 2]):
        alone, state = run(model, tokens[:, streams], State(*(part[:, streams] for part in before)))
        assert torch.equal(alone, together[:, streams])
        for part, whole in zip(state, after, strict=True):
            assert torch.equal(part, whole[:, streams])


@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_narrow_weights_are_computed_with_in_float32(random_model, tall_tiles, dtype, digits):
    narrow = model_of(random_model, "heads of 20", dtype)
    wide = model_of(random_model, "heads of 20", dtype).float()
    tokens, before = random_tokens(2, 1), random_state(narrow, 1)
    got, after = run(narrow, tokens, before)
    wanted, at_end = wide(tokens.T, State(*(part.float() for part in before)))

    def apart(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x.float() - y).norm() / y.norm())

    assert got.dtype == after.time_shift.dtype == dtype
    assert after.wkv.dtype == torch.float32
    # Numbers of so many digits are rounded by 2^-digits of their size at most; the interpreter cuts them off,
    # which is by twice as much. Rounded are the logits, the shifts and what `add_product` multiplies.
    assert apart(got, wanted.transpose(0, 1)) < 2 * 2.0**-digits
    for part, expected in zip(after, at_end, strict=True):
        assert apart(part, expected) < 2 * 2.0**-digits


def test_the_decoder_says_the_same_by_it(random_model, tall_tiles):
    backend = TorchBackend(model_of(random_model, "a head of 64"))

    def said(implementation: str | None) -> list[int]:
        decoder = BatchDecoder(backend, max_streams=6, sizes=[2, 6], implementation=implementation)
        assert decoder.implementations[2] == implementation
        assert decoder.implementations[6] != few.FEW_STREAMS
        greedy = SamplingParams(temperature=0)
        streams = [decoder.join([i + 1, 2], sampling=greedy) for i in range(2)]
        tokens = decoder.steps(3)
        for i in range(2):
            decoder.join([i + 9], sampling=greedy)
        later = decoder.steps(2)
        return [token for stream in streams for token in tokens[stream] + later[stream]]

    assert said(few.FEW_STREAMS) == said("reference")


def test_copies_of_weights_are_made_once_for_all_sizes(random_model, monkeypatch):
    made = []
    monkeypatch.setattr(steps, "weights_of", lambda model: made.append(weights_of(model)) or made[-1])
    monkeypatch.setattr(steps, "record", lambda run, **_: run)
    backend = TorchBackend(model_of(random_model))
    BatchDecoder(backend, max_streams=4, implementation=few.FEW_STREAMS)
    assert len(made) == 1


def test_a_recorded_step_keeps_the_memory_of_its_kernels(random_model, monkeypatch):
    """As on a GPU, where only addresses of it are left in the graph."""

    class Graph:
        def replay(self) -> None:
            pass

    kept = []

    def recording(run, **_):
        kept.append(weakref.ref(run))
        return recorded._Recorded(Graph(), run)

    monkeypatch.setattr(steps, "record", recording)
    model = model_of(random_model)
    arguments = random_tokens(1, 2)[0], model.initial_state(2), torch.empty(2, VOCABULARY, device=DEVICE)
    replay = StepRecorder(model, implementation=few.FEW_STREAMS).record(*arguments)
    gc.collect()
    assert kept[0]() is not None
    replay()
    del replay
    gc.collect()
    assert kept[0]() is None


def test_it_is_chosen_for_few_streams_of_what_it_reads_on_a_gpu(random_model, monkeypatch):
    model = model_of(random_model)
    assert StepRecorder(model, implementation="reference").implementation(1) == "reference"
    monkeypatch.setattr(steps, "_few_run_on", lambda device: False)
    assert StepRecorder(model).implementation(1) != few.FEW_STREAMS
    monkeypatch.setattr(steps, "_few_run_on", lambda device: True)
    chosen = [StepRecorder(model).implementation(streams) for streams in (1, 4, 5)]
    assert [each == few.FEW_STREAMS for each in chosen] == [True, True, False]
    six = random_model(sized("6", vocab_size=9, width=32, num_layers=2)).to(DEVICE)
    assert StepRecorder(six).implementation(1) != few.FEW_STREAMS
    with pytest.raises(ConfigError, match="RWKV-7 of dense matrices"):
        StepRecorder(six, implementation=few.FEW_STREAMS)


def test_it_is_for_gpus_alone():
    assert not steps._few_run_on(torch.device("cpu"))


def test_other_modules_and_dtypes_are_not_read(random_model):
    assert serves(model_of(random_model))
    assert not serves(random_model(sized("5.2", vocab_size=9, width=32, num_layers=1)))
    assert not serves(model_of(random_model, dtype=torch.float64))

    class Adapted(torch.nn.Linear):
        pass

    mixed, adapted, wrapped, strided = (model_of(random_model) for _ in range(4))
    mixed.head.bfloat16()
    adapted.blocks[1].att.receptance = Adapted(48, 48, bias=False)
    wrapped.blocks[0] = torch.nn.Sequential(wrapped.blocks[0])
    key = strided.blocks[0].ffn.key
    key.weight = torch.nn.Parameter(key.weight.T.contiguous().T)
    assert [serves(each) for each in (mixed, adapted, wrapped, strided)] == [False] * 4


def test_quantized_matrices_are_not_read(random_model):
    from rookery.checkpoints import Checkpoint

    model = random_model(sized("7", vocab_size=VOCABULARY, width=64, num_layers=1))
    checkpoint = Checkpoint(config=model.config, tensors=to_tensors(model), tokenizer=None)
    quantized = quantized_from_checkpoint(quantize(checkpoint, "q8"), dtype=torch.float32)
    assert isinstance(quantized.get_submodule("head"), QuantizedLinear)
    assert serves(model)
    assert not serves(quantized)
