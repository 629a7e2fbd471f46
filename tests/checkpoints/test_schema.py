"""The configuration is read off names and shapes; what does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery.checkpoints import (
    Checkpoint,
    assemble,
    cast,
    check_finite,
    config_from_tensors,
    expected_shapes,
    optional_shapes,
)
from rookery.config import VERSIONS, ModelConfig, preset, sized
from rookery.errors import CheckpointError

MakeModel = Callable[..., Checkpoint]


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_configuration_comes_back_from_its_shapes(data: st.DataObject) -> None:
    version = data.draw(st.sampled_from(VERSIONS))
    size = st.integers(1, 9)
    fields: dict[str, Any] = {
        "version": version,
        "vocab_size": data.draw(st.integers(1, 70000)),
        "width": 2 * data.draw(size),
        "num_layers": data.draw(st.integers(2, 13)),
        "ffn_width": data.draw(size),
    }
    if version == "4":
        fields["attention_width"] = data.draw(size)
    else:
        fields["head_size"] = 2 * data.draw(size)
        fields["attention_width"] = fields["head_size"] * data.draw(size)
    ranks = {"6": ["mix_rank", "decay_rank"], "7": ["decay_rank", "iclr_rank", "value_rank", "gate_rank"]}
    fields |= {name: data.draw(size) for name in ranks.get(version, [])}
    config = ModelConfig(**fields)
    assert config_from_tensors(expected_shapes(config)) == config


def _count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(int(np.prod(shape)) for shape in shapes.values())


def test_parameter_counts_are_the_published_ones() -> None:
    # RWKV-7 L12 D768 with the recipe's ranks has 191.08 M, the unused tensors of layer 0 counted.
    seven = preset("7", "0.1B")
    assert round((_count(expected_shapes(seven)) + _count(optional_shapes(seven))) / 1e6, 2) == 191.08
    assert round(_count(expected_shapes(preset("4", "0.1B"))) / 1e6) == 169


def test_one_layer_of_rwkv7_takes_the_recipes_value_rank() -> None:
    config = sized("7", vocab_size=9, width=64, num_layers=1)
    assert config_from_tensors(expected_shapes(config)) == config
    odd = sized("7", vocab_size=9, width=64, num_layers=1, value_rank=5)
    assert config_from_tensors(expected_shapes(odd) | optional_shapes(odd)) == odd


@pytest.mark.parametrize("rank", [5, 7])
def test_unused_tensors_of_layer_0_are_kept(make_model: MakeModel, rank: int) -> None:
    model = make_model("7")
    extra = {
        "blocks.0.att.v0": np.ones((1, 1, 32), np.float32),
        "blocks.0.att.v1": np.ones((32, rank), np.float32),
        "blocks.0.att.v2": np.ones((rank, 32), np.float32),
    }
    loaded = assemble(model.tensors | extra)
    assert loaded.config == model.config
    assert {name: loaded.tensors[name].shape for name in extra} == {n: t.shape for n, t in extra.items()}


def test_a_missing_tensor_is_named(make_model: MakeModel, version: str) -> None:
    model = make_model(version)
    for name in model.tensors:
        with pytest.raises(CheckpointError) as caught:
            assemble({n: t for n, t in model.tensors.items() if n != name}, path="a.pth")
        # A few names decide which version it is; without one of these, what is missing is seen elsewhere.
        if not any(
            part in name for part in ("r_k", "k_k", "time_maa_x", "ln_x", "gate", "time_faaaa", "emb")
        ):
            assert caught.value.tensor == name
        assert str(caught.value).startswith("a.pth: ")


def test_a_surplus_tensor_is_named(make_model: MakeModel, version: str) -> None:
    model = make_model(version)
    with pytest.raises(CheckpointError, match="surplus") as caught:
        assemble(model.tensors | {"blocks.1.att.other": np.ones(3, np.float32)})
    assert caught.value.tensor == "blocks.1.att.other"


def test_a_shape_that_does_not_fit_is_named(make_model: MakeModel, version: str) -> None:
    model = make_model(version)
    for name, tensor in model.tensors.items():
        if not name.startswith("blocks.1."):
            continue
        wrong = np.zeros((*tensor.shape[:-1], tensor.shape[-1] + 1), np.float32)
        with pytest.raises(CheckpointError, match="shape"):
            assemble(model.tensors | {name: wrong})


def test_axes_of_length_one_are_put_in_order(
    make_model: MakeModel, assert_same: Callable[..., None], version: str
) -> None:
    model = make_model(version)
    squeezed = {
        name: tensor.reshape(-1) if tensor.shape[:2] == (1, 1) else tensor
        for name, tensor in model.tensors.items()
    }
    assert_same(model, assemble(squeezed))
    if version in ("5.0", "5.1"):
        columns = {n: t[:, None] if n.endswith("time_decay") else t for n, t in model.tensors.items()}
        assert_same(model, assemble(columns))


def test_a_gap_between_layers_is_named(make_model: MakeModel) -> None:
    tensors = make_model("4", num_layers=3).tensors
    without = {n: t for n, t in tensors.items() if not n.startswith("blocks.1.")}
    with pytest.raises(CheckpointError, match="layer 1 is missing"):
        assemble(without)
    with pytest.raises(CheckpointError, match="layer 2 is missing"):
        assemble({n.replace("blocks.2.", "blocks.999999."): t for n, t in tensors.items()})
    with pytest.raises(CheckpointError, match="surplus"):
        assemble({n.replace("blocks.2.", f"blocks.{'9' * 5000}."): t for n, t in tensors.items()})


OTHER_KINDS = [
    ({"_strategy": (1,)}, "converted by the `rwkv` package"),
    ({"_version": (1,)}, "converted by the `rwkv` package"),
    ({"blocks.0.ffn.s_emb.weight": (71, 1024)}, "RWKV-7a"),
    ({"blocks.0.ffn.s_emb.weight": (71, 1024), "blocks.0.qkv.x_q": (1, 1, 32)}, "RWKV-7b"),
    ({"blocks.0.att.time_state": (4, 8, 8)}, "tuned state"),
    ({"blocks.0.att.key.lora_A": (4, 32)}, "LoRA"),
]


@pytest.mark.parametrize(("extra", "reason"), OTHER_KINDS)
def test_other_kinds_are_refused_with_the_reason(
    make_model: MakeModel, extra: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        config_from_tensors(expected_shapes(make_model("7").config) | extra)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({"blocks.0.att.time_state": (4, 8, 8)}, "not a model"),
        ({"base.blocks.0.att.key.lora_B.weight": (4, 32)}, "LoRA"),
        ({"model.embeddings.weight": (4, 32)}, "Hugging Face"),
        ({"transformer.wte.weight": (4, 32)}, "no RWKV checkpoint"),
        ({}, "no tensors"),
    ],
)
def test_what_is_no_model_is_refused_with_the_reason(names: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        config_from_tensors(names)


def test_a_dtype_that_weights_do_not_have_is_refused(make_model: MakeModel) -> None:
    model = make_model("4")
    with pytest.raises(CheckpointError, match="float64"):
        assemble(model.tensors | {"ln_out.bias": np.zeros(32)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_found(make_model: MakeModel, dtype: str, value: float) -> None:
    model = make_model("7", dtype)
    check_finite(model)
    model.tensors["blocks.1.ffn.key.weight"][2, 3] = value
    with pytest.raises(CheckpointError, match=r"1 of 1280 .* at \(2, 3\)") as caught:
        check_finite(model)
    assert caught.value.tensor == "blocks.1.ffn.key.weight"


def test_cast_rounds_and_refuses_overflow(make_model: MakeModel) -> None:
    model = make_model("5.2")
    there = cast(cast(model, "bfloat16"), "float32")
    assert all(t.dtype == np.float32 for t in there.tensors.values())
    for name, tensor in model.tensors.items():
        np.testing.assert_allclose(there.tensors[name], tensor, rtol=2**-8)
    model.tensors["head.weight"][0, 0] = 1e6
    with pytest.raises(CheckpointError, match="beyond the range of float16"):
        cast(model, "float16")
    with pytest.raises(CheckpointError, match="unknown"):
        cast(model, "int8")
