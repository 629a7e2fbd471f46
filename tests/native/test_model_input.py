"""What the native model is given: checkpoints of every kind, and input that is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import ml_dtypes
import numpy as np
import pytest

from rookery import checkpoints, native
from rookery.checkpoints import Checkpoint
from rookery.config import VERSIONS, ModelConfig, sized
from rookery.errors import CheckpointError, ConfigError, StateError
from rookery.native.quantize import quantize
from rookery.state import State, initial_state

FIELDS = State._fields


def weights(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in checkpoints.expected_shapes(config).items():
        x = rng.standard_normal(shape).astype(np.float32)
        tensors[name] = x if name == "emb.weight" else x * 0.3
    return tensors


def small(version: str = "7", **changes: int) -> Checkpoint:
    config = sized(version, vocab_size=96, width=64, num_layers=2, **changes)
    return Checkpoint(config=config, tensors=weights(config))


@pytest.fixture(scope="module")
def model() -> native.NativeModel:
    return native.load(small(), threads=2)


def pool(model: native.NativeModel, slots: int = 4) -> State[np.ndarray]:
    return initial_state(model.config, slots)


# --- Tokens, slots, options. ---


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        (np.zeros((1, 0), np.int64), "at least one token"),
        (np.zeros(3, np.int64), r"shape \[B, T\]"),
        (np.zeros((1, 1), np.float32), "integers"),
        (np.zeros((1, 1), bool), "integers"),
        (np.array([[0, 96]]), "token 96 is outside of the vocabulary of 96"),
        (np.array([[-1]]), "token -1 is outside"),
        (np.array([[2**63]], np.uint64), "token .* is outside"),
    ],
)
def test_tokens_that_are_none(model, tokens, problem):
    with pytest.raises(ConfigError, match=problem):
        model.forward(tokens, initial_state(model.config))


@pytest.mark.parametrize(
    ("requests", "problem"),
    [
        ([(1, [0]), (2, [0]), (1, [0])], "slot 1 is there twice"),
        ([(4, [0])], "slot 4 is not one of the pool's 4"),
        ([(-1, [0])], "slot -1 is not one"),
        ([(0, [1]), (3, [])], "slot 3 was given no tokens"),
        ([(0, [96])], "token 96 is outside"),
        ([(0, [-5])], "token -5 is outside"),
        ([(0, [2**70])], "integers"),
        ([(0, [0.5])], "integers"),
        ([(0, "text")], "integers"),
        ([(0, [[1], [2]])], "integers"),
        ([(0.5, [1])], "slot"),
        ([("a", [1])], "slot"),
    ],
)
def test_requests_that_are_none(model, requests, problem):
    states = pool(model)
    before = [part.copy() for part in states]
    with pytest.raises(ConfigError, match=problem):
        model.advance(requests, states)
    for part, copy in zip(states, before, strict=True):
        np.testing.assert_array_equal(part, copy)


def test_no_requests(model):
    assert model.advance([], pool(model)).shape == (0, 96)


@pytest.mark.parametrize("threads", [0, -1, 257, 10**6])
def test_threads_that_cannot_be(threads):
    with pytest.raises(ConfigError, match="threads must be 1 to 256"):
        native.load(small(), threads=threads)


@pytest.mark.parametrize("dtype", ["float16", "q5", "", "Q8"])
def test_types_that_are_not_there(dtype):
    with pytest.raises(ConfigError, match="float32, bfloat16, q8, q4"):
        native.load(small(), dtype=dtype)


def test_more_threads_than_work():
    model = native.load(small(), threads=9)
    alone = native.load(small(), threads=1)
    fresh = initial_state(model.config)
    np.testing.assert_array_equal(
        model.forward(np.array([[3]]), fresh)[0], alone.forward(np.array([[3]]), fresh)[0]
    )


# --- States. ---


def test_states_of_another_model(model):
    other = initial_state(sized("7", vocab_size=96, width=64, num_layers=3))
    lists = State(*(part.tolist() for part in initial_state(model.config)))
    for wrong in (other, initial_state(model.config, 2), tuple(initial_state(model.config))):
        with pytest.raises(StateError):
            model.forward(np.array([[1]]), wrong)
    with pytest.raises((StateError, AttributeError)):
        model.forward(np.array([[1]]), lists)
    with pytest.raises(StateError):
        model.advance([(0, [1])], other)


def test_pools_that_cannot_be_written_into(model):
    for change in (
        lambda part: part.astype(np.float64),
        lambda part: np.asfortranarray(part) if part.ndim > 1 else part,
        lambda part: np.broadcast_to(part, part.shape),
    ):
        with pytest.raises(StateError, match="written into"):
            model.advance([(0, [1])], State(*(change(part) for part in pool(model))))


def test_a_state_of_doubles_is_read(model):
    _, state = model.forward(np.array([[1, 2, 3]]), initial_state(model.config))
    wanted, _ = model.forward(np.array([[4]]), state)
    doubles = State(*(np.asfortranarray(part.astype(np.float64)) for part in state))
    np.testing.assert_array_equal(model.forward(np.array([[4]]), doubles)[0], wanted)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "q8"])
def test_a_state_that_is_not_finite(version, field, value, dtype):
    model = native.load(small(version), dtype=dtype, threads=1)
    states = pool(model, 3)
    model.advance([(slot, [slot, 5]) for slot in range(3)], states)
    for layer in (0, 1):
        broken = State(*(part.copy() for part in states))
        getattr(broken, field)[layer, 1].flat[-1] = value
        message = rf"state\.{field} holds NaN or infinity \(stream 1, layer {layer}\)"
        with pytest.raises(StateError, match=message):
            model.forward(np.zeros((3, 2), np.int64), broken)
        # The others go on as if nothing had been.
        whole = State(*(part.copy() for part in states))
        model.advance([(0, [7, 8]), (2, [9])], whole)
        with pytest.raises(StateError, match=message):
            model.advance([(0, [7, 8]), (1, [7]), (2, [9])], broken)
        for part, wanted in zip(broken, whole, strict=True):
            np.testing.assert_allclose(part[:, [0, 2]], wanted[:, [0, 2]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "q8"])
@pytest.mark.parametrize("tensor", ["emb.weight", "blocks.1.ln1.bias", "blocks.0.att.w0", "ln_out.bias"])
def test_weights_that_are_not_finite_show(dtype, tensor):
    """A number that is none comes out as one, or as an error: never as a likely token."""
    checkpoint = small()
    checkpoint.tensors[tensor] = np.full_like(checkpoint.tensors[tensor], np.nan)
    model = native.load(checkpoint, dtype=dtype)
    try:
        logits, _ = model.forward(np.array([[1, 2]]), initial_state(model.config))
    except StateError as error:
        assert "weights do" in str(error)  # noqa: PT017
    else:
        assert not np.isfinite(logits).any()


# --- Checkpoints. ---


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["q8", "q4"])
def test_a_quantized_checkpoint_runs_as_it_is(version, kind):
    quantized = quantize(small(version), kind)
    tokens = np.random.default_rng(0).integers(0, 96, (2, 20))
    model = native.load(quantized, threads=1)
    got, _ = model.forward(tokens, initial_state(model.config, 2))
    full = native.load(quantized, dtype="float32", threads=1)
    wanted, _ = full.forward(tokens, initial_state(model.config, 2))
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 0.1
    assert model.matrix_bytes < full.matrix_bytes / 3


def test_layer_0_may_have_what_nothing_uses():
    checkpoint = small()
    shapes = checkpoints.optional_shapes(checkpoint.config)
    assert shapes
    surplus = {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}
    more = Checkpoint(config=checkpoint.config, tensors=checkpoint.tensors | surplus)
    fresh = initial_state(checkpoint.config)
    got, _ = native.load(more).forward(np.array([[1, 2]]), fresh)
    np.testing.assert_array_equal(got, native.load(checkpoint).forward(np.array([[1, 2]]), fresh)[0])


def test_tensors_that_are_missing_or_of_another_shape():
    checkpoint = small()
    for name in ("head.weight", "emb.weight", "blocks.1.att.key.weight", "blocks.0.ln0.bias"):
        tensors = {other: x for other, x in checkpoint.tensors.items() if other != name}
        with pytest.raises(CheckpointError, match=f"tensor '{name}': is missing"):
            native.load(Checkpoint(config=checkpoint.config, tensors=tensors))
        x = checkpoint.tensors[name]
        tensors[name] = np.concatenate([x, x])
        with pytest.raises(CheckpointError):
            native.load(Checkpoint(config=checkpoint.config, tensors=tensors))


@pytest.mark.parametrize("version", VERSIONS)
def test_head_sizes_widths_and_ranks_that_nothing_divides(version):
    for width, head in ((9, 3), (50, 5), (34, 17), (130, 130)):
        heads = {} if version == "4" else {"head_size": head}
        config = sized(version, vocab_size=33, width=width, num_layers=2, ffn_width=width + 7, **heads)
        model = native.load(Checkpoint(config=config, tensors=weights(config)), threads=3)
        tokens = np.random.default_rng(0).integers(0, 33, (2, 5))
        whole, _ = model.forward(tokens, initial_state(config, 2))
        state, pieces = initial_state(config, 2), []
        for t in range(5):
            piece, state = model.forward(tokens[:, t : t + 1], state)
            pieces.append(piece)
        np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=0, atol=1e-4 * np.abs(whole).max())


def test_an_attention_width_of_its_own():
    config = ModelConfig(
        version="7",
        vocab_size=40,
        width=48,
        num_layers=2,
        attention_width=96,
        ffn_width=100,
        head_size=32,
        decay_rank=8,
        iclr_rank=8,
        value_rank=8,
        gate_rank=8,
    )
    model = native.load(Checkpoint(config=config, tensors=weights(config)), threads=2)
    logits, _ = model.forward(np.array([[1, 2, 3]]), initial_state(config))
    assert np.isfinite(logits).all()


# --- Files. ---


@pytest.fixture
def file(tmp_path) -> Path:
    checkpoint = small()
    tensors = {name: x.astype(ml_dtypes.bfloat16) for name, x in checkpoint.tensors.items()}
    path = tmp_path / "model.safetensors"
    checkpoints.save(Checkpoint(config=checkpoint.config, tensors=tensors), path)
    return path


def test_a_file_that_is_cut_off_while_it_is_in_use(file):
    checkpoint = checkpoints.load(file)
    model = native.load(checkpoint)
    fresh = initial_state(model.config)
    model.forward(np.array([[1]]), fresh)
    os.truncate(file, 4096)
    with pytest.raises(CheckpointError, match="was cut off while it was in use"):
        model.forward(np.array([[95]]), fresh)
    with pytest.raises(CheckpointError, match="was cut off while it was in use"):
        model.advance([(0, [95])], pool(model))
    with pytest.raises(CheckpointError, match="was cut off while it was in use"):
        native.load(checkpoint)


def test_packing_leaves_the_checkpoint_as_it_was(file):
    checkpoint = checkpoints.load(file)
    before = {name: tensor.copy() for name, tensor in checkpoint.tensors.items()}
    for _ in range(2):
        native.load(checkpoint)
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(tensor, before[name])


def test_memory_holds_the_weights_once(tmp_path):
    """In a process of its own: what it takes at most, above what it took before the file was opened."""
    config = sized("7", vocab_size=16384, width=512, num_layers=6)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
        for name, shape in checkpoints.expected_shapes(config).items()
    }
    path = tmp_path / "model.safetensors"
    checkpoints.save(Checkpoint(config=config, tensors=tensors), path)
    program = """
import re, sys
import numpy as np
from rookery import checkpoints, native
from rookery.state import initial_state

def most():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

before = most()
model = native.load(checkpoints.load(sys.argv[1]), threads=1)
model.forward(np.arange(200)[None], initial_state(model.config), last_only=True)
print(most() - before)
"""
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    taken = int(done.stdout)
    # The head alone is 17 MB: it lies in memory twice for a moment.
    assert taken < path.stat().st_size + (24 << 20)


def test_calls_from_several_threads_wait_for_each_other(model):
    tokens = np.random.default_rng(0).integers(0, 96, (8, 30))
    fresh = initial_state(model.config)
    wanted = [model.forward(row[None], fresh)[0] for row in tokens]
    got: list[np.ndarray | None] = [None] * len(tokens)

    def run(index: int) -> None:
        for _ in range(10):
            got[index] = model.forward(tokens[index][None], fresh)[0]

    threads = [Thread(target=run, args=(i,)) for i in range(len(tokens))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, expected in zip(got, wanted, strict=True):
        assert result is not None
        np.testing.assert_array_equal(result, expected)
