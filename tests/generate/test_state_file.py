from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import rookery
from rookery import checkpoints
from rookery.errors import StateError
from rookery.generate.state_file import fingerprint

VERSIONS = ["4", "5.0", "5.1", "5.2", "6", "7"]
OPTIONS = {"presence_penalty": 0.4, "frequency_penalty": 0.2, "temperature": 1.2, "max_tokens": 15}


@pytest.fixture
def saved(model, tmp_path):
    """A state file, its tensors and its metadata."""
    session = model.session(seed=4, **OPTIONS)
    session.feed("one")
    session.generate()
    path = tmp_path / "a.state"
    session.save(path)
    with safe_open(path, "numpy") as file:
        return path, {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("native", "float32"), ("native", "q8"), ("torch", "float32"), ("torch", "bfloat16")],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_resumed_session_goes_on_exactly(model_file, tmp_path, version, backend, dtype):
    model = rookery.load(model_file(version), backend=backend, dtype=dtype)
    session = model.session(**OPTIONS)
    session.feed("one")
    first = session.generate()
    session.save(tmp_path / "a.state")
    other = rookery.load(model_file(version), backend=backend, dtype=dtype).session()
    other.load(tmp_path / "a.state")
    assert other.sampling == session.sampling
    assert other.position == session.position
    assert other.generate() == session.generate() != first
    np.testing.assert_array_equal(other.logits, session.logits)
    arrays = (model.backend.to_numpy(each.state) for each in (other, session))
    for part, expected in zip(*arrays, strict=True):
        np.testing.assert_array_equal(part, expected)


def test_saving_in_the_middle_of_a_character(scripted, tmp_path):
    model = scripted({">": "a€b"})
    session = model.session()
    session.feed(">")
    assert session.generate(max_tokens=3) == "a"
    session.save(tmp_path / "a.state")
    with pytest.raises(StateError):
        scripted({}).session().load(tmp_path / "absent.state")
    other = model.session()
    other.load(tmp_path / "a.state")
    assert other.generate() == session.generate() == "€b"


def test_a_session_that_has_read_nothing(model, tmp_path):
    model.session(seed=1, max_tokens=9).save(tmp_path / "a.state")
    session = model.session()
    session.load(tmp_path / "a.state")
    assert session.position == 0
    assert session.generate() == model.generate("", seed=1, max_tokens=9)


def test_a_state_of_another_model(saved, model_file):
    path, _, _ = saved
    other = rookery.load(model_file("6")).session()
    other.feed("x")
    with pytest.raises(StateError, match=r"another model: its version is 7, this model's is 6"):
        other.load(path)
    assert other.position == 1
    with pytest.raises(StateError, match="another model of the same shape"):
        rookery.load(model_file(seed=2)).session().load(path)


def test_a_state_goes_with_its_model_into_another_format(saved, model_file, tmp_path):
    path, _, _ = saved
    checkpoints.save(checkpoints.load(model_file()), tmp_path / "same.pth")
    rookery.load(tmp_path / "same.pth").session().load(path)


def test_a_fingerprint_tells_weights_not_files():
    rng = np.random.default_rng(0)
    tensors = {"a": rng.normal(size=(40, 50)).astype(np.float32), "b": np.ones(3, np.float32)}
    same = fingerprint(tensors)
    assert fingerprint(dict(reversed(tensors.items()))) == same
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    assert fingerprint(halves) != same
    assert fingerprint({name: tensor.astype(np.float32) for name, tensor in halves.items()}) == fingerprint(
        halves
    )
    assert fingerprint(tensors | {"b": np.full(3, 2, np.float32)}) != same
    assert fingerprint(tensors | {"a": tensors["a"] + 1e-3}) != same


def test_a_file_that_is_no_state(model, model_file, tmp_path):
    session = model.session()
    with pytest.raises(StateError, match="is it a model"):
        session.load(model_file())
    (tmp_path / "text").write_text("a state, honestly")
    with pytest.raises(StateError, match="not a state file"):
        session.load(tmp_path / "text")
    with pytest.raises(StateError, match="not a state file"):
        session.load(tmp_path / "absent")


def test_a_file_that_is_cut_off_or_changed(saved, model):
    path, _, _ = saved
    data = path.read_bytes()
    session = model.session()
    for size in (0, 7, 100, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(StateError, match=str(path)):
            session.load(path)
    changed = bytearray(data)
    changed[-5] ^= 1
    path.write_bytes(changed)
    with pytest.raises(StateError, match="not those that were saved"):
        session.load(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 2}, "format 2 is of another release"),
        ({"position": "many"}, "broken state file"),
        ({"position": 0}, "broken state file: 0 tokens read"),
        ({"sampler": {}}, "not the state of a sampler"),
        ({"config": {}}, "not a model configuration"),
        ({"config": 3}, "broken state file"),
        ({"partial": None}, "broken state file"),
    ],
)
def test_metadata_that_does_not_fit(saved, model, tmp_path, change, problem):
    _, tensors, metadata = saved
    about = json.loads(metadata["rookery_state"]) | change
    save_file(tensors, tmp_path / "b.state", {"rookery_state": json.dumps(about)})
    with pytest.raises(StateError, match=problem):
        model.session().load(tmp_path / "b.state")


@pytest.mark.parametrize("name", ["time_shift", "channel_shift", "wkv", "logits"])
def test_tensors_that_do_not_fit(saved, model, tmp_path, name):
    _, tensors, metadata = saved
    for tensor in (None, tensors[name][..., :-1]):
        rest = {each: part for each, part in tensors.items() if each != name}
        changed = rest if tensor is None else rest | {name: np.ascontiguousarray(tensor)}
        save_file(changed, tmp_path / "b.state", metadata)
        with pytest.raises(StateError, match=r"b\.state"):
            model.session().load(tmp_path / "b.state")


def test_nan_in_a_state(saved, model, tmp_path):
    _, tensors, metadata = saved
    import zlib

    tensors["wkv"][0, 0, 0, 0, 0] = np.nan
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].tobytes(), checksum)
    about = json.loads(metadata["rookery_state"]) | {"checksum": checksum}
    save_file(tensors, tmp_path / "b.state", {"rookery_state": json.dumps(about)})
    with pytest.raises(StateError, match="wkv holds NaN"):
        model.session().load(tmp_path / "b.state")


def test_a_file_that_cannot_be_written(model, tmp_path):
    with pytest.raises(StateError, match="cannot be written"):
        model.session().save(tmp_path / "absent" / "a.state")


def test_saving_while_a_stream_is_open_changes_nothing(model, tmp_path):
    texts = []
    for save in (True, False):
        session = model.session(seed=4, temperature=0.3)
        session.feed("one")
        pieces = []
        for piece in session.stream(temperature=3.0, max_tokens=20):
            pieces.append(piece)
            if save:
                session.save(tmp_path / "a.state")
        texts.append(pieces)
    assert texts[0] == texts[1]
