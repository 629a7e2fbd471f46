"""GGUF files: round trips, what llama.cpp's own conversion writes otherwise, types, tokenizers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from rookery import tokenizers
from rookery.checkpoints import Checkpoint, Quantized, assemble, dense, load, save
from rookery.checkpoints.gguf_container import GGUFFile
from rookery.checkpoints.gguf_tokenizer import tokenizer_metadata
from rookery.checkpoints.quantized import quantize_q8_0
from rookery.errors import CheckpointError

MakeModel = Callable[..., Checkpoint]
Type = gguf.GGMLQuantizationType

# Sizes of which every matrix consists of blocks.
EVEN = {"width": 64, "ffn_width": 96, "head_size": 16}
RANKS = {
    "6": {"mix_rank": 32, "decay_rank": 64},
    "7": {"decay_rank": 32, "iclr_rank": 64, "value_rank": 96, "gate_rank": 32},
}

TRANSPOSED = re.compile(r"att\.([wavg][12]|time_maa_w1|time_decay_w[12])$")
VECTORS = re.compile(
    r"ln|time_(mix|maa)_.$|time_(decay|first|faaaa)$|att\.(x_.|[wav]0|k_k|k_a|r_k)$|ffn\.x_k$"
)


def even(make_model: MakeModel, version: str, **options: Any) -> Checkpoint:
    sizes = {k: v for k, v in EVEN.items() if version != "4" or k != "head_size"}
    return make_model(version, **(sizes | RANKS.get(version, {}) | options))


def quantized(model: Checkpoint) -> Checkpoint:
    """Every matrix in blocks of q8_0."""
    tensors = dict(model.tensors)
    for name, weight in model.tensors.items():
        if len(weight.shape) == 2 and not VECTORS.search(name):
            transposed = bool(TRANSPOSED.search(name))
            rows = np.ascontiguousarray(dense(weight).T) if transposed else dense(weight)
            tensors[name] = Quantized("q8_0", weight.shape, quantize_q8_0(rows), transposed)
    return assemble(tensors, tokenizer=model.tokenizer)


def assert_same_weights(one: Checkpoint, other: Checkpoint) -> None:
    assert one.config == other.config
    assert list(one.tensors) == list(other.tensors)
    for name, weight in one.tensors.items():
        assert np.array_equal(dense(weight), dense(other.tensors[name])), name


def test_a_round_trip_changes_no_bit(
    tmp_path: Path, make_model: MakeModel, assert_same: Callable, version: str, dtype: str
) -> None:
    model = make_model(version, dtype, {"kind": "chars", "alphabet": "\nab"})
    save(model, tmp_path / "m.gguf")
    assert_same(model, load(tmp_path / "m.gguf"))


def test_blocks_stay_blocks(tmp_path: Path, make_model: MakeModel, version: str) -> None:
    model = quantized(even(make_model, version))
    save(model, tmp_path / "m.gguf")
    loaded = load(tmp_path / "m.gguf")
    assert_same_weights(model, loaded)
    for name, weight in model.tensors.items():
        there = loaded.tensors[name]
        assert isinstance(there, Quantized) == isinstance(weight, Quantized), name
        if isinstance(there, Quantized):
            assert there.transposed == bool(TRANSPOSED.search(name))
            assert not there.blocks.flags.owndata  # of the mapped file
    assert isinstance(loaded.tensors["emb.weight"], Quantized)
    assert (tmp_path / "m.gguf").stat().st_size < 1.2 * sum(t.nbytes for t in model.tensors.values()) + 8000


def test_blocks_of_the_other_orientation_are_written_dense(tmp_path: Path, make_model: MakeModel) -> None:
    model = even(make_model, "7")
    rows = np.ascontiguousarray(dense(model.tensors["head.weight"])[:64].T)
    tensors = dict(model.tensors)
    tensors["emb.weight"] = tensors["emb.weight"][:64]
    tensors["head.weight"] = Quantized("q8_0", (64, 64), quantize_q8_0(rows), transposed=True)
    turned = assemble(tensors)
    save(turned, tmp_path / "m.gguf")
    assert_same_weights(turned, load(tmp_path / "m.gguf"))


@pytest.mark.parametrize("version", ["6", "7"])
def test_another_reader_finds_what_llama_cpp_expects(
    tmp_path: Path, make_model: MakeModel, version: str
) -> None:
    model = quantized(even(make_model, version, vocab_size=256, tokenizer={"kind": "bytes"}))
    save(model, tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    arch = f"rwkv{version}"
    config = model.config
    assert fields["general.architecture"] == arch
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert fields[f"{arch}.embedding_length"] == config.width
    assert fields[f"{arch}.block_count"] == config.num_layers
    assert fields[f"{arch}.feed_forward_length"] == config.ffn_width
    assert fields[f"{arch}.wkv.head_size"] == config.head_size
    assert fields[f"{arch}.attention.head_count"] == 0
    assert fields[f"{arch}.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    block = gguf.MODEL_TENSORS[gguf.MODEL_ARCH.RWKV7 if version == "7" else gguf.MODEL_ARCH.RWKV6]
    known = {gguf.TENSOR_NAMES[each].format(bid=1) for each in block}
    assert {name.rsplit(".", 1)[0].replace("blk.0.", "blk.1.") for name in tensors} <= known
    D, letters = config.width, {"6": 5, "7": 6}[version]
    fused = tensors["blk.1.time_mix_lerp_fused.weight"]
    assert fused.tensor_type == Type.F32
    assert list(fused.shape) == [D, 1, 1, letters]
    order = ("att.time_maa_", "wkvrg") if version == "6" else ("att.x_", "rwkvag")
    for part, letter in zip(fused.data, order[1], strict=True):
        assert np.array_equal(part.ravel(), model.tensors[f"blocks.1.{order[0]}{letter}"].ravel())
    if version == "6":
        assert list(tensors["blk.1.time_mix_w1.weight"].shape) == [D, 5 * 32]
        assert list(tensors["blk.1.time_mix_w2.weight"].shape) == [32, D, 5]
        assert fields[f"{arch}.time_mix_extra_dim"] == 32
        assert fields[f"{arch}.time_decay_extra_dim"] == 64
    else:
        assert list(tensors["blk.1.time_mix_w1.weight"].shape) == [D, 32]
        assert list(tensors["blk.1.time_mix_a2.weight"].shape) == [64, D]
        assert list(tensors["blk.1.time_mix_r_k.weight"].shape) == [D]
        for one, other in ("v0", "a0"), ("v1", "a1"), ("v2", "a2"):
            copy, original = (tensors[f"blk.0.time_mix_{each}.weight"] for each in (one, other))
            assert np.array_equal(copy.data, original.data)
        assert fields[f"{arch}.attention.value_residual_mix_lora_rank"] == 96


def rewritten(path: Path, change: Callable[[str, np.ndarray], dict[str, Any]], **fields: Any) -> None:
    """The file again, by the package ``gguf``, with some tensors and metadata changed.

    ``change(name, array)`` gives the tensors that take its place: arrays, or (type, raw bytes).
    """
    reader = gguf.GGUFReader(path)
    old = {name: field.contents() for name, field in reader.fields.items()}
    arch = old["general.architecture"]
    tensors = [(t.name, np.array(t.data).reshape(t.shape[::-1])) for t in reader.tensors]
    del reader
    writer = gguf.GGUFWriter(path, arch)
    for name, value in (old | {f"{arch}.{key}": value for key, value in fields.items()}).items():
        if isinstance(value, int) and not name.startswith(("GGUF", "tokenizer")):
            writer.add_uint32(name, value)
    for name, array in tensors:
        for new_name, value in change(name, array).items():
            if isinstance(value, tuple):
                writer.add_tensor(new_name, value[1], raw_dtype=value[0])
            else:
                writer.add_tensor(new_name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("blocks", [False, True])
def test_the_rescaling_of_llama_cpps_conversion_is_undone(
    tmp_path: Path, make_model: MakeModel, blocks: bool
) -> None:
    model = even(make_model, "6", num_layers=5)
    save(model, tmp_path / "m.gguf")

    def rescale(name: str, array: np.ndarray) -> dict[str, Any]:
        if not name.endswith(("time_mix_output.weight", "channel_mix_value.weight")):
            return {name: array}
        array = array / np.float32(2 ** (int(name.split(".")[1]) // 2))
        return {name: (Type.Q8_0, gguf.quants.quantize(array, Type.Q8_0)) if blocks else array}

    rewritten(tmp_path / "m.gguf", rescale, rescale_every_n_layers=2)
    loaded = load(tmp_path / "m.gguf")
    for name, weight in model.tensors.items():
        bound = 0.02 if blocks and name.endswith(("att.output.weight", "ffn.value.weight")) else 0
        assert np.abs(dense(loaded.tensors[name]) - weight).max() <= bound, name


@pytest.mark.parametrize("version", ["6", "7"])
def test_token_shifts_one_by_one(tmp_path: Path, make_model: MakeModel, version: str) -> None:
    model = even(make_model, version)
    save(model, tmp_path / "m.gguf")
    letters = {"6": "wkvrg", "7": "rwkvag"}[version]

    def split(name: str, array: np.ndarray) -> dict[str, Any]:
        if "lerp_fused" not in name:
            return {name: array}
        return {name.replace("fused", x): part for x, part in zip(letters, array, strict=True)}

    rewritten(tmp_path / "m.gguf", split)
    assert_same_weights(model, load(tmp_path / "m.gguf"))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"])
def test_every_type_of_matrix_is_read(tmp_path: Path, make_model: MakeModel, kind: str) -> None:
    model = make_model("7", width=256, ffn_width=256, head_size=64, vocab_size=40)
    save(model, tmp_path / "m.gguf")
    block, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    rng = np.random.default_rng(2)
    there: dict[str, np.ndarray] = {}

    def requantize(name: str, array: np.ndarray) -> dict[str, Any]:
        if array.ndim != 2 or array.shape[1] % block:
            return {name: array}
        raw = rng.integers(0, 256, (*array.shape[:1], array.shape[1] // block, size), np.uint8)
        # The upper bytes of the scales: magnitudes from 2^-7 to 2^-3.
        for high in {"Q4_0": [1], "Q8_0": [1], "Q5_0": [1], "Q6_K": [209]}.get(kind, [1, 3]):
            raw[..., high] = raw[..., high] & 0x8F | 0x20
        raw = raw.reshape(len(array), -1)
        there[name] = gguf.quants.dequantize(raw, Type[kind])
        return {name: (Type[kind], raw)}

    rewritten(tmp_path / "m.gguf", requantize)
    loaded = load(tmp_path / "m.gguf")
    head, low_rank = loaded.tensors["head.weight"], loaded.tensors["blocks.1.att.g1"]
    pairs = [
        (head, there["output.weight"]),
        (low_rank, there["blk.1.time_mix_g1.weight"].T),
        (loaded.tensors["blocks.0.ffn.value.weight"], there["blk.0.channel_mix_value.weight"]),
    ]
    for weight, expected in pairs:
        assert isinstance(weight, Quantized)
        assert weight.kind == ("q4_0" if kind == "Q4_0" else "q8_0")
        axis = weight.axis
        largest = np.abs(expected).max(axis=axis, keepdims=True)
        # Q8_0 and Q4_0 are as they were; the others are rounded to 8 bits once more.
        bound = 0 if kind in ("Q8_0", "Q4_0") else 0.51 / 127 * largest
        assert (np.abs(weight.dequantize() - expected) <= bound).all()
    assert low_rank.transposed
    assert not head.transposed


def test_vectors_may_be_of_any_type(tmp_path: Path, make_model: MakeModel) -> None:
    model = even(make_model, "7", dtype="float16")
    save(model, tmp_path / "m.gguf")

    def narrow(name: str, array: np.ndarray) -> dict[str, Any]:
        if name == "blk.1.time_mix_w0.weight":
            return {name: (Type.Q8_0, gguf.quants.quantize(array.reshape(1, -1), Type.Q8_0).ravel())}
        return {name: array.astype(np.float16)}

    rewritten(tmp_path / "m.gguf", narrow)
    loaded = load(tmp_path / "m.gguf")
    for name, weight in model.tensors.items():
        bound = 0.02 if name == "blocks.1.att.w0" else 0
        assert np.abs(loaded.tensors[name].astype(np.float32) - weight).max() <= bound, name


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "world"},
        {"kind": "bytes"},
        {"kind": "chars", "alphabet": "\n \"'\\é🐦"},
        {"kind": "json", "json": '{"some": ["json"]}'},
        None,
    ],
    ids=lambda spec: spec["kind"] if spec else "none",
)
def test_the_tokenizer_comes_back(tmp_path: Path, make_model: MakeModel, spec: Any) -> None:
    size = 65536 if spec == {"kind": "world"} else 300
    model = make_model("7", tokenizer=spec, vocab_size=size, num_layers=1, width=8)
    save(model, tmp_path / "m.gguf")
    assert load(tmp_path / "m.gguf").tokenizer == spec
    if spec and spec["kind"] in ("world", "bytes", "chars"):
        tokenizer = tokenizers.from_spec(spec)
        file = GGUFFile(tmp_path / "m.gguf")
        texts = list(file.strings(file.metadata["tokenizer.ggml.tokens"]))
        assert len(texts) == size
        assert texts[tokenizer.encode("\n")[0]] == b"\\n"


def test_world_is_known_without_our_own_entry(tmp_path: Path, make_model: MakeModel) -> None:
    save(make_model("7", vocab_size=65536, num_layers=1, width=8), tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    # llama.cpp's conversion does not know the entry.
    foreign = data.replace(b"rookery.tokenizer", b"another.tokenizer", 1)
    (tmp_path / "m.gguf").write_bytes(foreign)
    assert load(tmp_path / "m.gguf").tokenizer == {"kind": "world"}
    changed = foreign.replace(b"\\xff\\xfe", b"\\xff\\xfd").replace(b" the", b" tha", 1)
    (tmp_path / "m.gguf").write_bytes(changed)
    assert load(tmp_path / "m.gguf").tokenizer is None


def test_worlds_texts_are_those_of_llama_cpps_conversion() -> None:
    metadata = tokenizer_metadata({"kind": "world"}, 65536, Path("m.gguf"))
    texts, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert texts[0] == b"<s>"
    assert types[0] == gguf.TokenType.CONTROL
    assert texts[1] == b"\\x00"
    assert types[1] == gguf.TokenType.NORMAL
    assert texts[65535] == b"[PAD65535]"
    assert types[65535] == gguf.TokenType.UNUSED
    world = tokenizers.named("world")
    for token in range(1, 65530, 97):
        assert repr(world.token_bytes(token))[2:-1].encode() == texts[token]


def test_5_variants_are_told_apart_by_their_tensors(tmp_path: Path, make_model: MakeModel) -> None:
    for version in ("5.0", "5.1", "5.2"):
        for head_size in (2, 8, 32):
            save(make_model(version, head_size=head_size), tmp_path / "m.gguf")
            config = load(tmp_path / "m.gguf").config
            assert (config.version, config.head_size) == (version, head_size)


@pytest.mark.parametrize(
    ("drop", "rename", "fields", "reason"),
    [
        ("blk.1.time_mix_key.weight", None, {}, "is missing; the file holds blocks.1.att.key.weight"),
        (None, ("output.weight", "rope.weight"), {}, "missing"),
        (None, ("blk.0.attn_norm.bias", "blk.0.attn_norm.more"), {}, "missing"),
        (None, None, {"block_count": 3}, "2 layers, but says 3"),
        (None, None, {"wkv.head_size": 0}, "heads of 0"),
        (None, None, {"wkv.head_size": 7}, "heads of 7"),
        (None, None, {"wkv.head_size": 32}, "shape"),
    ],
)
def test_what_is_no_model_is_refused(
    tmp_path: Path,
    make_model: MakeModel,
    drop: str | None,
    rename: tuple[str, str] | None,
    fields: dict[str, int],
    reason: str,
) -> None:
    save(even(make_model, "7"), tmp_path / "m.gguf")

    def change(name: str, array: np.ndarray) -> dict[str, Any]:
        if name == drop:
            return {}
        return {rename[1] if rename and name == rename[0] else name: array}

    rewritten(tmp_path / "m.gguf", change, **fields)
    if fields.get("wkv.head_size") == 32:
        # Heads of any size that divides the width make a model.
        assert load(tmp_path / "m.gguf").config.head_size == 32
        return
    with pytest.raises(CheckpointError, match=re.escape(reason)):
        load(tmp_path / "m.gguf")


def test_other_architectures_and_surplus_tensors_are_named(tmp_path: Path, make_model: MakeModel) -> None:
    path = tmp_path / "m.gguf"
    save(make_model("4"), path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"rwkv4", b"llama"))
    with pytest.raises(CheckpointError, match="architecture 'llama'; RWKV models have rwkv4"):
        load(path)
    path.write_bytes(data)
    rewritten(path, lambda name, array: {name: array} | ({"rope": array} if name == "output.weight" else {}))
    with pytest.raises(CheckpointError, match="surplus") as caught:
        load(path)
    assert caught.value.tensor == "rope"


def test_a_broken_tokenizer_cannot_be_written(tmp_path: Path, make_model: MakeModel) -> None:
    model = replace(make_model("4"), tokenizer={"kind": "chars"})
    with pytest.raises(CheckpointError, match="its tokenizer cannot be written"):
        save(model, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []
