"""The shape of a model: sizes by the recipe, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from rookery.config import PRESETS, VERSIONS, ModelConfig, preset, sized
from rookery.errors import ConfigError, MissingExtraError, StateError, require
from rookery.state import State, check_state, initial_state, state_bytes, state_shapes

SMALL = {version: sized(version, vocab_size=97, width=64, num_layers=2) for version in VERSIONS}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_preset_makes_a_config_that_survives_json(version):
    for size in PRESETS[version.split(".")[0]]:
        config = preset(version, size)
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_published_sizes():
    small = preset("7", "0.1B")
    assert (small.num_layers, small.width, small.num_heads, small.ffn_width) == (12, 768, 12, 3072)
    assert (small.decay_rank, small.iclr_rank, small.value_rank, small.gate_rank) == (64, 64, 32, 128)
    assert preset("6", "1.6B").ffn_width == 7168
    assert preset("4", "0.1B").vocab_size == 50277
    assert preset("5.2", "3B").ffn_width == 8960
    assert preset("5.0", "3B").ffn_width == 10240
    assert preset("7", "1.5B").gate_rank == 256


def test_a_preset_with_changes():
    config = preset("7", "1.5B", vocab_size=256, num_layers=2, gate_rank=7)
    assert (config.vocab_size, config.num_layers, config.width) == (256, 2, 2048)
    assert (config.gate_rank, config.decay_rank) == (7, 96)
    assert preset("7", "1.5B", width=1024).gate_rank == 160


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": "8"}, "version"),
        ({"width": 0}, "width"),
        ({"num_layers": -1}, "num_layers"),
        ({"head_size": 48}, "multiple"),
        ({"gate_rank": 0}, "gate_rank"),
        ({"mix_rank": 4}, "mix_rank"),
        ({"vocab_size": 2.5}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, word):
    with pytest.raises(ConfigError, match=word):
        replace(SMALL["7"], **change)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="no preset"):
        preset("7", "9B")
    with pytest.raises(ConfigError, match="unknown"):
        preset("3", "tiny")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="mix_rank"):
        sized("7", vocab_size=5, width=64, num_layers=1, mix_rank=3)
    with pytest.raises(ConfigError, match="head_size"):
        sized("4", vocab_size=5, width=64, num_layers=1, head_size=32)
    with pytest.raises(ConfigError, match="depth"):
        ModelConfig.from_dict(SMALL["7"].to_dict() | {"depth": 3})


@pytest.mark.parametrize("version", VERSIONS)
def test_states_have_the_shapes_of_the_legend(version):
    config = SMALL[version]
    state = initial_state(config, batch=3)
    assert check_state(state, config) == 3
    assert tuple(part.shape for part in state) == tuple(state_shapes(config, 3))
    assert sum(part.nbytes for part in initial_state(config)) == state_bytes(config)
    if version == "4":
        assert np.all(state.wkv[:, :, 2] == np.float32(-1e30))
    else:
        assert state.wkv.shape == (2, 3, 1, 64, 64)


def test_a_foreign_state_is_refused():
    state = initial_state(SMALL["6"])
    with pytest.raises(StateError, match="wkv"):
        check_state(state, SMALL["4"])
    with pytest.raises(StateError, match="stream"):
        check_state(state, SMALL["6"], batch=2)
    with pytest.raises(StateError, match="tuple"):
        check_state(tuple(state), SMALL["6"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(StateError, match="time_shift"):
        check_state(State(*(part[0] for part in state)), SMALL["6"])


def test_a_missing_extra_names_what_to_install():
    with pytest.raises(MissingExtraError, match=r"rookery\[train\]"):
        require("a_module_that_is_not_there", extra="train", purpose="Training")
    assert require("json", extra="train", purpose="Training") is json
