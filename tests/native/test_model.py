"""The native model against torch's: every version, type of weights, instruction set and way to run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch

from rookery import native
from rookery.checkpoints import Checkpoint, Quantized
from rookery.config import VERSIONS, ModelConfig, sized
from rookery.models import from_checkpoint, to_tensors
from rookery.native import _engine
from rookery.state import State, initial_state

torch.set_num_threads(1)

# Heads of 40, ranks and sizes that no register divides.
SIZES = {"vocab_size": 203, "width": 120, "num_layers": 2}
RANKS: dict[str, dict[str, int]] = {
    "6": {"mix_rank": 17, "decay_rank": 41},
    "7": {"decay_rank": 17, "iclr_rank": 24, "value_rank": 33, "gate_rank": 51},
}

# |logits - reference| / |reference|, where the reference has weights rounded in the same way: what is left is
# the rounding of inputs. And of the states.
BOUNDS = {"float32": 1e-5, "bfloat16": 1.5e-2, "q8": 5e-2, "q4": 6e-2}
# The same where the reference has the weights as they were.
BOUNDS_OF_ALL = {"float32": 1e-5, "bfloat16": 2e-2, "q8": 6e-2}

every_set = pytest.mark.parametrize("instructions", _engine.available_instruction_sets())
every_version = pytest.mark.parametrize("version", VERSIONS)
every_type = pytest.mark.parametrize("dtype", BOUNDS)


@pytest.fixture
def forced(instructions):
    before = _engine.instruction_set()
    _engine.force_instruction_set(instructions)
    yield instructions
    _engine.force_instruction_set(before)


def config_of(version: str) -> ModelConfig:
    heads = {} if version == "4" else {"head_size": 40}
    return sized(version, **SIZES, **heads, **RANKS.get(version, {}))


def blocks(x: np.ndarray, kind: str) -> np.ndarray:
    """[rows, columns], rounded to blocks of 32 columns."""
    rows, columns = x.shape
    padded = np.zeros((rows, -(-columns // 32) * 32), np.float32)
    padded[:, :columns] = x
    data, width = padded.reshape(-1).view(np.uint8), padded.shape[1]
    packed, _, _ = _engine.quantize(data, source="float32", rows=rows, columns=width, type=f"{kind}_0")
    return Quantized(f"{kind}_0", padded.shape, packed.reshape(rows, -1)).dequantize()[:, :columns]


def is_low_rank(name: str) -> bool:
    return name.endswith(("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2"))


def rounded(tensors: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """The weights that the engine has: matrices rounded to its type, all else in float32."""

    def matrix(name: str, x: np.ndarray) -> np.ndarray:
        if dtype == "bfloat16":
            return x.astype(ml_dtypes.bfloat16).astype(np.float32)
        if is_low_rank(name):
            return (
                blocks(x.swapaxes(-1, -2).reshape(-1, x.shape[-2]), "q8")
                .reshape(*x.shape[:-2], x.shape[-1], -1)
                .swapaxes(-1, -2)
            )
        return blocks(x, dtype)

    def is_matrix(name: str) -> bool:
        return is_low_rank(name) or name == "head.weight" or (name.endswith(".weight") and "ln" not in name)

    if dtype == "float32":
        return tensors
    return {
        name: np.ascontiguousarray(matrix(name, x)) if is_matrix(name) and name != "emb.weight" else x
        for name, x in tensors.items()
    }


class Case(NamedTuple):
    """A model, tokens, and what the torch model makes of them with weights rounded."""

    checkpoint: Checkpoint
    tokens: np.ndarray
    logits: np.ndarray
    state: State[np.ndarray]


@pytest.fixture(scope="session")
def case(random_model) -> Callable[[str, str], Case]:
    @cache
    def make(version: str, dtype: str) -> Case:
        config = config_of(version)
        tensors = to_tensors(random_model(config))
        tokens = np.random.default_rng(3).integers(0, config.vocab_size, (2, 45))
        reference = from_checkpoint(Checkpoint(config=config, tensors=rounded(tensors, dtype)))
        with torch.no_grad():
            logits, state = reference(torch.from_numpy(tokens))
        checkpoint = Checkpoint(config=config, tensors=tensors)
        return Case(checkpoint, tokens, logits.numpy(), State(*(part.numpy() for part in state)))

    return make


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    assert got.shape == wanted.shape
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def comparable(version: str, state: State[np.ndarray]) -> State[np.ndarray]:
    """RWKV-4's three numbers are not unique: any maximum will do. Their ratio and logarithm are."""
    if version != "4":
        return state
    numerator, denominator, maximum = np.moveaxis(state.wkv, 2, 0)
    return state._replace(wkv=np.stack([numerator / denominator, maximum + np.log(denominator)], 2))


def check_state_close(version: str, got: State[np.ndarray], wanted: State[np.ndarray], bound: float) -> None:
    for name, part, reference in zip(
        State._fields, comparable(version, got), comparable(version, wanted), strict=True
    ):
        assert error(part, reference) < bound, name


def stream(state: State[np.ndarray], index: int) -> State[np.ndarray]:
    return State(*(part[:, index : index + 1] for part in state))


@every_set
@every_version
@every_type
def test_every_way_to_run(case, forced, version: str, dtype: str):
    checkpoint, tokens, logits, state = case(version, dtype)
    bound = BOUNDS[dtype]
    model = native.load(checkpoint, dtype=dtype, threads=2)
    fresh = initial_state(model.config, 2)

    # All at once.
    got, after = model.forward(tokens, fresh)
    assert error(got, logits) < bound
    check_state_close(version, after, state, bound)
    if dtype in BOUNDS_OF_ALL:
        assert error(got, case(version, "float32").logits) < BOUNDS_OF_ALL[dtype]

    # One after the other, the state carried across; here and below nothing but sums' order may differ.
    same = 1e-5 if dtype == "float32" else bound
    carried, pieces = fresh, []
    for begin, end in [(0, 20), *((t, t + 1) for t in range(20, 25)), (25, 45)]:
        piece, carried = model.forward(tokens[:, begin:end], carried)
        pieces.append(piece)
    assert error(np.concatenate(pieces, 1), got) < same
    check_state_close(version, carried, after, same)

    # Ragged streams in the slots of a pool: a prompt for one, single tokens for the other.
    pool = initial_state(model.config, 5)
    untouched = [part[:, [0, 2, 4]].copy() for part in pool]
    last = model.advance([(3, tokens[1, :30].tolist()), (1, tokens[0, :1].tolist())], pool)
    assert error(last, np.stack([got[1, 29], got[0, 0]])) < same
    for t in range(1, 10):
        requests = [(1, tokens[0, t : t + 1])]
        if t == 5:
            requests.insert(0, (3, tokens[1, 30:]))
        last = model.advance(requests, pool)
        assert error(last[-1], got[0, t]) < same
    for part, before in zip(pool, untouched, strict=True):
        np.testing.assert_array_equal(part[:, [0, 2, 4]], before)
    check_state_close(version, State(*(part[:, 3:4] for part in pool)), stream(after, 1), same)


@every_version
@every_type
def test_threads_change_nothing(case, version: str, dtype: str):
    checkpoint, tokens, _, _ = case(version, dtype)
    fresh = initial_state(checkpoint.config, 2)
    one, one_state = native.load(checkpoint, dtype=dtype, threads=1).forward(tokens, fresh)
    for threads in (2, 3, 7):
        model = native.load(checkpoint, dtype=dtype, threads=threads)
        assert model.threads == threads
        got, state = model.forward(tokens, fresh)
        np.testing.assert_array_equal(got, one)
        for part, wanted in zip(state, one_state, strict=True):
            np.testing.assert_array_equal(part, wanted)


@every_version
def test_more_tokens_than_a_pass_and_more_streams(case, version: str):
    """Prompts are cut inside: 256 tokens of whatever streams at a time."""
    checkpoint, _, _, _ = case(version, "float32")
    model = native.load(checkpoint, dtype="float32", threads=2)
    tokens = np.random.default_rng(4).integers(0, 203, (3, 301))
    reference = from_checkpoint(checkpoint)
    with torch.no_grad():
        wanted, state = reference(torch.from_numpy(tokens))
    got, after = model.forward(tokens, initial_state(model.config, 3))
    assert error(got, wanted.numpy()) < 1e-5
    check_state_close(version, after, State(*(part.numpy() for part in state)), 1e-5)
    last, _ = model.forward(tokens, initial_state(model.config, 3), last_only=True)
    np.testing.assert_allclose(last[:, 0], got[:, -1], rtol=0, atol=1e-5 * np.abs(got).max())

    pool = initial_state(model.config, 300)
    starts = np.random.default_rng(5).integers(0, 203, 300)
    alone, _ = model.forward(starts[:, None], initial_state(model.config, 300))
    together = model.advance([(slot, [token]) for slot, token in enumerate(starts)], pool)
    np.testing.assert_allclose(together, alone[:, 0], rtol=0, atol=1e-5 * np.abs(alone).max())


def test_a_state_is_never_written_into(case):
    checkpoint, tokens, _, _ = case("7", "float32")
    model = native.load(checkpoint)
    _, state = model.forward(tokens, initial_state(model.config, 2))
    copies = [part.copy() for part in state]
    for part in state:
        part.flags.writeable = False
    model.forward(tokens[:, :1], state)
    model.forward(tokens, state)
    for part, copy in zip(state, copies, strict=True):
        np.testing.assert_array_equal(part, copy)


@pytest.mark.parametrize(
    ("stored", "kind"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "bfloat16")]
)
def test_the_type_of_the_file_is_the_default(case, stored: str, kind: str):
    checkpoint, tokens, _, _ = case("7", "float32")
    tensors = {name: x.astype(stored) for name, x in checkpoint.tensors.items()}
    stored_checkpoint = Checkpoint(config=checkpoint.config, tensors=tensors)
    fresh = initial_state(checkpoint.config, 2)
    got, _ = native.load(stored_checkpoint).forward(tokens, fresh)
    wanted, _ = native.load(stored_checkpoint, dtype=kind).forward(tokens, fresh)
    np.testing.assert_array_equal(got, wanted)
