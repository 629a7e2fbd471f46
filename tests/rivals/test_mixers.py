"""The table of mixers: sizes, initial values, groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from rookery.config import ModelConfig
from rookery.errors import ConfigError
from rookery.models import RWKV, parameter_groups
from rookery.models.channel_mixing import ChannelMixing7
from rookery.rivals import MIXERS, RivalConfig, build, sizes_for

every_mixer = pytest.mark.parametrize("name", MIXERS)
SMALL = {"vocab_size": 29, "width": 16, "num_layers": 2}


@every_mixer
@pytest.mark.parametrize("parameters", [1_000_000, 1_020_000])
def test_all_mixers_have_the_same_number_of_parameters(name: str, parameters: int):
    config = sizes_for(name, vocab_size=256, width=128, num_layers=4, parameters=parameters)
    model = build(config)
    assert abs(model.num_parameters - parameters) <= 0.02 * parameters
    assert model.num_parameters == sum(p.numel() for p in model.parameters())
    assert (config.width, config.num_layers, config.vocab_size) == (128, 4, 256)
    assert model.config == config
    assert isinstance(model, RWKV) == name.startswith("rwkv") == MIXERS[name].is_rwkv


@every_mixer
def test_the_channel_mixing_alone_gives_way(name: str):
    usual = sizes_for(name, **SMALL)
    config = sizes_for(name, **SMALL, parameters=build(usual).num_parameters + 2 * 2 * 16 * 32)
    assert config.ffn_width == usual.ffn_width + 32
    assert config.to_dict() | {"ffn_width": usual.ffn_width} == usual.to_dict()
    assert type(config).from_dict(config.to_dict()) == config


@every_mixer
def test_numbers_out_of_reach_are_refused(name: str):
    with pytest.raises(ConfigError, match="none within 2 %"):
        sizes_for(name, vocab_size=256, width=128, num_layers=4, parameters=200_000)


@every_mixer
def test_a_seed_is_a_model_and_first_predictions_are_uniform(name: str):
    config = sizes_for(name, **SMALL)
    one, same, other = build(config, seed=1), build(config, seed=1), build(config, seed=2)
    equal = [torch.equal(p, q) for p, q in zip(one.parameters(), same.parameters(), strict=True)]
    assert all(equal)
    assert not all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    tokens = torch.randint(29, (4, 32), generator=torch.Generator().manual_seed(0))
    logits, _ = one(tokens)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    # The head's rows have length 1/2 sqrt(29 / 16), and what they read has length 4.
    assert abs(loss.item() - math.log(29)) < 1.5


@every_mixer
def test_every_parameter_is_in_one_group_and_matrices_decay(name: str):
    model = build(sizes_for(name, **SMALL))
    groups = parameter_groups(model, weight_decay=0.1)
    counted = [id(p) for group in groups for p in group["params"]]
    assert sorted(counted) == sorted(id(p) for p in model.parameters())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    if not MIXERS[name].is_rwkv:
        matrices = {id(p) for p in model.parameters() if p.dim() == 2}
        learned_places = {id(p) for n, p in model.named_parameters() if ".position_" in n}
        assert decayed == matrices - learned_places


@every_mixer
def test_some_steps_of_training_learn_a_repetition(name: str):
    torch.manual_seed(0)
    model = build(sizes_for(name, **SMALL))
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1), lr=0.02)
    tokens = torch.arange(40).remainder(5)[None]
    for _ in range(30):
        logits, _ = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert loss.item() < 0.3


def test_rivals_have_the_channel_mixing_of_rwkv_7():
    for name, row in MIXERS.items():
        model = build(sizes_for(name, **SMALL))
        assert isinstance(model.blocks[0].ffn, ChannelMixing7) or row.is_rwkv
        assert isinstance(model.config, ModelConfig if row.is_rwkv else RivalConfig)


@pytest.mark.parametrize(
    ("name", "sizes", "problem"),
    [
        ("rwkv8", {}, "there is no mixer 'rwkv8'; there are rwkv4, rwkv5"),
        ("lstm", {"width": 0}, "width"),
        ("lstm", {"head_size": 8}, "lstm has no head_size"),
        ("attention", {"head_size": 7}, "not a multiple"),
        ("attention", {"rotary_size": 3, "head_size": 8}, "rotary_size must be even"),
        ("attention", {"depth": 3}, "no such option"),
        ("attention", {"vocab_size": 0}, "vocab_size"),
        ("attention", {"channel_mixing": "relu"}, "channel_mixing 'relu' is unknown"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name: str, sizes: dict[str, int], problem: str):
    with pytest.raises(ConfigError, match=problem):
        sizes_for(name, **(SMALL | sizes))


def test_configurations_that_are_none_are_refused():
    values = sizes_for("lstm", **SMALL).to_dict()
    with pytest.raises(ConfigError, match="not a rival's configuration"):
        RivalConfig.from_dict(values | {"depth": 3})
    with pytest.raises(ConfigError, match="mixer 'gru' is unknown"):
        RivalConfig.from_dict(values | {"mixer": "gru"})
