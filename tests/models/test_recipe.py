"""The published recipe: initial values against formulas written out channel by channel, groups, sizes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rookery.config import VERSIONS, ModelConfig, Version, preset, sized
from rookery.models import RWKV, init_weights, parameter_groups

L, D, N, K = 3, 48, 211, 16

every_version = pytest.mark.parametrize("version", VERSIONS)


def config_of(version: Version) -> ModelConfig:
    heads = {} if version == "4" else {"head_size": K}
    # A rank above the width, so that one low-rank gain differs from 1.
    ranks = {"gate_rank": 64} if version == "7" else {}
    return sized(version, vocab_size=N, width=D, num_layers=L, **heads, **ranks)


@pytest.fixture(scope="module")
def models() -> dict[Version, RWKV]:
    """Every parameter NaN, then initialised: none can be forgotten."""
    made = {}
    for version in VERSIONS:
        model = RWKV(config_of(version))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(math.nan)
        init_weights(model, seed=0)
        made[version] = model
    return made


def z(layer: int) -> float:
    return layer / (L - 1)


def rho(layer: int) -> float:
    return 1 - layer / L


def zigzag(i: int) -> int:
    return (i + 1) % 3 - 1


def q(i: int) -> float:
    return ((i % K) - (K - 1) / 2) / ((K - 1) / 2)


def bent(i: int) -> float:
    return q(i) * abs(q(i))


def lin(i: int) -> float:
    return i / (D - 1) - 0.5


def mix_k(i: int, n: int) -> float:
    return (i / D) ** rho(n)


def mix_r(i: int, n: int) -> float:
    return (i / D) ** (0.5 * rho(n))


def mix_v(i: int, n: int) -> float:
    return (i / D) ** rho(n) + 0.3 * z(n)


def decay(i: int, n: int) -> float:
    return -6 + 5 * (i / (D - 1)) ** (0.7 + 1.3 * z(n))


def bonus(i: int, n: int) -> float:
    return z(n) * (1 - i / (D - 1)) + 0.1 * zigzag(i)


# What follows "blocks.n." in a name: the value of channel i (or head h) in layer n, as it is published.
Formula = Callable[[int, int], float]
LN_X: dict[str, Formula] = {
    "att.ln_x.weight": lambda i, n: ((n + 1) / L) ** 0.7,
    "att.ln_x.bias": lambda i, n: 0.0,
}
SHIFTS: dict[str, Formula] = {
    "att.time_mix_k": mix_k,
    "att.time_mix_v": mix_v,
    "att.time_mix_r": mix_r,
    "ffn.time_mix_k": mix_k,
    "ffn.time_mix_r": mix_k,
}
PER_HEAD: dict[str, Formula] = {
    "att.time_decay": lambda h, n: -6 + 5 * (h / (D // K - 1)) ** (0.7 + 1.3 * z(n)),
    "att.time_first": lambda h, n: -3.0,
}
FORMULAS: dict[Version, dict[str, Formula]] = {
    "4": {
        **SHIFTS,
        "att.time_decay": lambda i, n: -5 + 8 * (i / (D - 1)) ** (0.7 + 1.3 * z(n)),
        "att.time_first": lambda i, n: math.log(0.3) + 0.5 * zigzag(i),
    },
    "5.0": {**SHIFTS, **LN_X, **PER_HEAD},
    "5.1": {**SHIFTS, **LN_X, **PER_HEAD, "att.time_mix_g": mix_r},
    "5.2": {
        **SHIFTS,
        **LN_X,
        "att.time_mix_g": mix_r,
        "att.time_decay": decay,
        "att.time_faaaa": bonus,
    },
    "6": {
        **LN_X,
        "att.time_decay": decay,
        "att.time_faaaa": bonus,
        "att.time_maa_x": lambda i, n: 1 - mix_k(i, n),
        "att.time_maa_w": lambda i, n: 1 - mix_k(i, n),
        "att.time_maa_k": lambda i, n: 1 - mix_k(i, n),
        "att.time_maa_v": lambda i, n: 1 - mix_v(i, n),
        "att.time_maa_r": lambda i, n: 1 - mix_r(i, n),
        "att.time_maa_g": lambda i, n: 1 - mix_r(i, n),
        "ffn.time_maa_k": lambda i, n: 1 - mix_k(i, n),
        "ffn.time_maa_r": lambda i, n: 1 - mix_k(i, n),
    },
    "7": {
        **LN_X,
        "att.x_r": lambda i, n: 1 - (i / D) ** (0.2 * rho(n)),
        "att.x_w": lambda i, n: 1 - (i / D) ** (0.9 * rho(n)),
        "att.x_k": lambda i, n: 1 - (i / D) ** (0.7 * rho(n)),
        "att.x_v": lambda i, n: 1 - (i / D) ** (0.7 * rho(n)),
        "att.x_a": lambda i, n: 1 - (i / D) ** (0.9 * rho(n)),
        "att.x_g": lambda i, n: 1 - (i / D) ** (0.2 * rho(n)),
        "att.w0": lambda i, n: -6 + 6 * (i / (D - 1)) ** (1 + z(n) ** 0.3) + 0.5 + 2.5 * bent(i),
        "att.a0": lambda i, n: -0.19 + 0.3 * bent(i) + 0.4 * lin(i),
        "att.v0": lambda i, n: 0.73 - 0.4 * lin(i),
        "att.k_k": lambda i, n: 0.71 - 0.1 * lin(i),
        "att.k_a": lambda i, n: 1.02,
        "att.r_k": lambda i, n: -0.04,
        "ffn.x_k": lambda i, n: 1 - (i / D) ** (rho(n) ** 4),
    },
}

# Gains of orthogonal matrices; 0 for zeros.
GATED_FFN = {"ffn.key.weight": 1.0, "ffn.value.weight": 0.0, "ffn.receptance.weight": 0.0}
ATTENTION = {
    "att.receptance.weight": 1.0,
    "att.key.weight": 0.1,
    "att.value.weight": 1.0,
    "att.output.weight": 0.0,
}
RATIO_OF_FFN = math.sqrt(4.0)
GAINS: dict[Version, dict[str, float]] = {
    "4": {
        "att.receptance.weight": 0.0,
        "att.key.weight": 0.0,
        "att.value.weight": 1.0,
        "att.output.weight": 0.0,
        **GATED_FFN,
        "ffn.key.weight": RATIO_OF_FFN,
    },
    "5.0": ATTENTION | GATED_FFN,
    "5.1": ATTENTION | GATED_FFN | {"att.gate.weight": 0.1},
    "5.2": ATTENTION | GATED_FFN | {"att.gate.weight": 0.1},
    "6": ATTENTION | GATED_FFN | {"att.gate.weight": 0.1, "att.time_maa_w1": 0.0, "att.time_decay_w1": 0.0},
    "7": ATTENTION
    | {"ffn.key.weight": 1.0, "ffn.value.weight": 0.0}
    | {f"att.{letter}1": 0.0 for letter in "wavg"}
    | {"att.w2": 0.1, "att.a2": 0.1, "att.v2": 0.1, "att.g2": 0.1 * math.sqrt(64 / 48)},
}
UNIFORM = {"6": {"att.time_maa_w2": 0.01, "att.time_decay_w2": 0.01}}


def assert_orthogonal(name: str, matrix: Tensor, gain: float) -> None:
    rows, columns = matrix.shape
    product = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    wanted = gain**2 * torch.eye(min(rows, columns))
    torch.testing.assert_close(product, wanted, rtol=0, atol=1e-5, msg=name)


def assert_uniform(name: str, values: Tensor, bound: float) -> None:
    assert values.abs().max() <= bound, name
    # Standard error of the deviation of n values is below 2 / sqrt(n) of it; five of those are allowed.
    slack = 10 / values.numel() ** 0.5
    assert values.std().item() == pytest.approx(bound / 3**0.5, rel=slack), name


@every_version
def test_initial_values_are_those_of_the_recipe(models, version: Version):
    checked = set()
    for name, parameter in models[version].named_parameters():
        value = parameter.detach()
        layer, _, part = name.removeprefix("blocks.").partition(".")
        if name == "emb.weight":
            assert_uniform(name, value, 1e-4)
        elif name == "head.weight":
            assert_orthogonal(name, value, 0.5 * math.sqrt(N / D))
        elif part in FORMULAS[version]:
            formula = FORMULAS[version][part]
            wanted = [formula(i, int(layer)) for i in range(value.numel())]
            torch.testing.assert_close(value.flatten(), torch.tensor(wanted), msg=name)
        elif part in GAINS[version]:
            assert_orthogonal(name, value, GAINS[version][part])
        elif part in UNIFORM.get(version, {}):
            assert_uniform(name, value, UNIFORM[version][part])
        else:
            assert ".ln" in f".{name}", name
            assert (value == (1.0 if name.endswith("weight") else 0.0)).all(), name
        checked.add(part)
    assert checked >= FORMULAS[version].keys() | GAINS[version].keys()


@every_version
def test_first_loss_is_that_of_guessing_and_gradients_are_finite(models, version: Version):
    generator = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(N, (2, 4, 256), generator=generator)
    model = models[version]
    logits, _ = model(tokens)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    # Logits have a deviation of 0.5, which costs its square's half above the logarithm.
    assert loss.item() == pytest.approx(math.log(N) + 0.125, abs=0.1)
    model.zero_grad()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@every_version
def test_a_seed_gives_one_model_in_any_dtype(models, version: Version):
    config = config_of(version)
    same, other, rounded = RWKV(config), RWKV(config), RWKV(config).bfloat16()
    for model, seed in ((same, 0), (other, 1), (rounded, 0)):
        init_weights(model, seed=seed)
    wanted = models[version].state_dict()
    for name, value in same.state_dict().items():
        assert torch.equal(value, wanted[name]), name
    for name, value in rounded.state_dict().items():
        assert torch.equal(value, wanted[name].bfloat16()), name
    assert not torch.equal(other.head.weight, same.head.weight)


@every_version
def test_models_of_one_layer_or_one_channel(version: Version):
    heads = {} if version == "4" else {"head_size": 1}
    model = RWKV(sized(version, vocab_size=2, width=1, num_layers=1, ffn_width=1, **heads))
    init_weights(model, seed=0)
    logits, _ = model(torch.tensor([[0, 1, 1]]))
    assert logits.isfinite().all()


FASTER: dict[Version, dict[str, float]] = {
    "4": {"time_decay": 2, "time_first": 3},
    "5.0": {"time_decay": 2, "time_first": 3},
    "5.1": {"time_decay": 2, "time_first": 3},
    "5.2": {"time_decay": 2},
    "6": {"time_decay": 2},
    "7": {"w0": 2},
}


@every_version
def test_groups_hold_every_parameter_once(models, version: Version):
    model = models[version]
    groups = parameter_groups(model, weight_decay=0.1)
    assert len({group["name"] for group in groups}) == len(groups)
    counted = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(counted) == sorted(id(parameter) for parameter in model.parameters())
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        group = of[id(parameter)]
        matrix = name.endswith(".weight") and parameter.dim() == 2
        assert group["weight_decay"] == (0.1 if matrix else 0.0), name
        assert group["lr_scale"] == FASTER[version].get(name.split(".")[-1], 1), name
    torch.optim.AdamW(groups, lr=1e-3)


def test_groups_leave_out_what_is_frozen():
    model = RWKV(config_of("7"))
    model.emb.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.1)
    counted = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(counted) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def parameters_of(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in RWKV(config).parameters())


@pytest.mark.parametrize(
    ("version", "size", "count"),
    [
        ("4", "0.1B", 169_342_464),
        ("4", "0.4B", 430_397_440),
        ("4", "1.5B", 1_515_106_304),
        ("4", "3B", 2_984_627_200),
        ("4", "7B", 7_392_649_216),
        ("7", "0.1B", 191_034_624),
        ("7", "0.4B", 450_767_872),
        ("7", "1.5B", 1_527_404_544),
        ("7", "2.9B", 2_947_735_040),
        ("7", "7.2B", 7_199_141_888),
    ],
)
def test_published_sizes_have_their_number_of_parameters(version: Version, size: str, count: int):
    assert parameters_of(preset(version, size)) == count


@pytest.mark.parametrize(
    ("version", "size", "billions"),
    [
        # arXiv 2404.05892, and the announcements of the later Finch models.
        ("5.2", "0.4B", "0.46"),
        ("5.2", "1.5B", "1.58"),
        ("5.2", "3B", "3.06"),
        ("5.2", "7B", "7.52"),
        ("6", "1.6B", "1.60"),
        ("6", "3B", "3.10"),
        ("6", "7B", "7.64"),
        ("6", "14B", "14.07"),
        ("4", "14B", "14.15"),
    ],
)
def test_sizes_published_in_billions(version: Version, size: str, billions: str):
    assert f"{parameters_of(preset(version, size)) / 1e9:.2f}" == billions


def test_minipile_model_counts_the_unused_tensors_of_layer_0():
    """The published 191.08 M count v0, v1 and v2 of layer 0, which nothing reads and this model has not."""
    config = preset("7", "0.1B")
    unused = config.width * (1 + 2 * config.value_rank)
    assert round((parameters_of(config) + unused) / 1e6, 2) == 191.08
