"""Measurements: which there are, what a process of its own returns, what is kept, left out and shown."""

from __future__ import annotations

import csv
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from rookery import checkpoints
from rookery.cli import main
from rookery.config import PRESETS, sized
from rookery.errors import CheckpointError, ConfigError, DataError
from rookery.evaluate.bench import (
    FAMILIES,
    Point,
    Row,
    points_of_families,
    points_of_model,
    run,
    runner,
    write_report,
)
from rookery.evaluate.bench import families as families_module
from rookery.evaluate.bench.devices import devices
from rookery.evaluate.bench.memory import needed_bytes, parameters, peak_bytes, reset_peak, resident_bytes
from rookery.evaluate.bench.point import read_rows, write_rows
from rookery.evaluate.bench.report import summaries
from rookery.evaluate.bench.runner import measure_apart
from rookery.evaluate.bench.worker import Rookery, Transformers, measure, random_checkpoint
from rookery.generate import torch_backend

POINT = Point(
    family="rwkv",
    size="0.1B",
    backend="native",
    device="cpu",
    dtype="float32",
    context=8,
    tokens=2,
    threads=1,
)
ROW = Row(
    point=POINT,
    parameters=1000,
    load_s=0.5,
    first_token_s=0.25,
    tokens_per_s=40.0,
    before_bytes=1000,
    loaded_bytes=5000,
    load_peak_bytes=9000,
    peak_bytes=6000,
)
TINY = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 40}


@pytest.fixture
def tiny(monkeypatch):
    """Every family has a size "mini" which is no work."""
    shapes = {
        "neox": TINY | {"intermediate_size": 32},
        "opt": TINY | {"ffn_dim": 32, "word_embed_proj_dim": 16},
        "bloom": {"n_layer": 1, "hidden_size": 16, "n_head": 2, "vocab_size": 40},
    }
    for name, sizes in shapes.items():
        monkeypatch.setitem(FAMILIES, name, replace(FAMILIES[name], sizes={"mini": sizes}))


@pytest.fixture
def model_file(tmp_path):
    config = sized("7", vocab_size=50, width=16, num_layers=1, head_size=8)
    path = tmp_path / "tiny.safetensors"
    checkpoints.save(random_checkpoint(config, "float32"), path)
    return path


def fake(point, limit_s, memory):
    """A row at once; the more context the slower."""
    return replace(
        ROW,
        point=point,
        first_token_s=point.context / 100 * (1 + point.round),
        tokens_per_s=float(point.threads),
        attention="sdpa" if point.backend == "transformers" else None,
    )


def test_points_of_families_short_contexts_and_rounds_first():
    points = points_of_families(
        ["rwkv", "neox"], ["0.1b", "160M"], contexts=[64, 8], rounds=2, dtypes=["float32"]
    )
    order = [(p.round, p.context, p.family, p.size, p.backend) for p in points]
    assert order[:4] == [
        (0, 8, "rwkv", "0.1B", "native"),
        (0, 8, "rwkv", "0.1B", "torch"),
        (0, 8, "neox", "160m", "transformers"),
        (0, 64, "rwkv", "0.1B", "native"),
    ]
    assert [p.round for p in points] == [0] * 6 + [1] * 6


def test_each_family_has_its_own_default_size():
    points = points_of_families(list(FAMILIES), contexts=[8], rounds=1, backends=["torch", "transformers"])
    assert [(p.family, p.size) for p in points] == [(name, f.default) for name, f in FAMILIES.items()]
    for name, family in FAMILIES.items():
        assert family.size(family.default) == family.default, name


def test_quantized_weights_are_of_the_native_backend():
    points = points_of_families(["rwkv", "neox"], contexts=[8], rounds=1, dtypes=["q8", "bfloat16"])
    assert [(p.backend, p.dtype) for p in points] == [
        ("native", "q8"),
        ("native", "bfloat16"),
        ("torch", "bfloat16"),
        ("transformers", "bfloat16"),
    ]


@pytest.mark.parametrize(
    ("families", "sizes", "options", "problem"),
    [
        (["gpt"], [], {}, "no family 'gpt'; there are rwkv, .*neox, opt, bloom"),
        (["rwkv", "opt"], ["0.1B", "160m"], {}, "no size '160m'.*rwkv: tiny, 0.1B.*; opt: 125m"),
        (["rwkv"], [], {"contexts": [0]}, "context must be 1 or more"),
        (["rwkv"], [], {"rounds": 0}, "rounds must be 1 or more"),
        (["rwkv"], [], {"backends": ["cuda"]}, "nothing is left"),
        (["neox"], [], {"dtypes": ["q4"]}, "nothing is left"),
        (["rwkv"], [], {"dtypes": ["int3"]}, "no number type 'int3'"),
        (["rwkv"], [], {"devices": ["tpu"]}, "no device 'tpu'"),
    ],
)
def test_what_cannot_be_measured_is_refused(families, sizes, options, problem):
    with pytest.raises(ConfigError, match=problem):
        points_of_families(families, sizes, **{"contexts": [8]} | options)


def test_a_file_is_measured_in_its_own_type(model_file, tmp_path):
    points = points_of_model(str(model_file), contexts=[4], rounds=1)
    assert [(p.backend, p.dtype) for p in points] == [("native", "float32"), ("torch", "float32")]
    config = sized("7", vocab_size=50, width=16, num_layers=1, head_size=8)
    checkpoints.save(random_checkpoint(config, "bfloat16"), tmp_path / "half.safetensors")
    assert points_of_model(str(tmp_path / "half.safetensors"), contexts=[4])[0].dtype == "bfloat16"
    with pytest.raises(ConfigError, match="no backend 'llama'"):
        points_of_model(str(model_file), contexts=[4], backends=["llama"])
    with pytest.raises((CheckpointError, OSError)):
        points_of_model(str(tmp_path / "none.safetensors"), contexts=[4])


@pytest.mark.parametrize(
    ("family", "size", "published"),
    [
        ("neox", "70m", 70_426_624),
        ("neox", "160m", 162_322_944),
        ("neox", "1.4b", 1_414_647_808),
        ("opt", "125m", 125_239_296),
        ("opt", "1.3b", 1_315_758_080),
        ("bloom", "560m", 559_214_592),
        ("bloom", "1b7", 1_722_408_960),
        ("rwkv", "0.1B", 191_084_544),
    ],
)
def test_shapes_are_the_published_ones(family, size, published):
    point = replace(POINT, family=family, size=size, context=2048)
    assert parameters(point) == pytest.approx(published, rel=0.01)


def test_memory_is_foreseen_from_weights_cache_and_scores():
    short = {
        name: needed_bytes(replace(POINT, family=name, size=FAMILIES[name].default)) for name in FAMILIES
    }
    far = {
        name: needed_bytes(replace(POINT, family=name, size=FAMILIES[name].default, context=32768))
        for name in FAMILIES
    }
    assert far["rwkv"] == short["rwkv"]
    # 12 layers of keys and values, 768 wide, 4 bytes each, and more while reading.
    assert far["neox"] - short["neox"] > 2 * 12 * 32760 * 768 * 4
    # Scores of 16 heads in float32.
    assert far["bloom"] - short["bloom"] > 16 * 32768**2 * 4
    assert needed_bytes(replace(POINT, family="file")) is None


def test_random_weights_are_of_the_shape_and_of_no_cost():
    config = sized("6", vocab_size=300, width=64, num_layers=2, head_size=16)
    made = random_checkpoint(config, "bfloat16")
    assert {name: tensor.shape for name, tensor in made.tensors.items()} == checkpoints.expected_shapes(
        config
    )
    emb = np.asarray(made.tensors["emb.weight"], np.float32)
    assert 0.019 < emb.std() < 0.021
    assert (np.asarray(made.tensors["ln_out.weight"], np.float32) == 1).all()
    # No tensor keeps more memory alive than it has.
    assert all(tensor.base.nbytes == tensor.nbytes for tensor in made.tensors.values())


@pytest.mark.parametrize("family", ["neox", "opt", "bloom"])
def test_models_of_transformers_go_on_from_their_cache(tiny, family):
    subject = Transformers(replace(POINT, family=family, size="mini", backend="transformers"))
    subject.load()
    for layer in subject.model.parameters():
        layer.mul_(3)
    prompt = [3, 1, 4, 1, 5]
    split = [subject.read(prompt), *(subject.read([token]) for token in (9, 2, 6))]
    whole = []
    for end in range(len(prompt), len(prompt) + 4):
        subject.forget()
        whole.append(subject.read([*prompt, 9, 2, 6][:end]))
    assert split == whole
    assert subject.attention in ("sdpa", "eager")
    assert subject.parameters > 0


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_file_in_both_backends_goes_on_from_its_state(model_file, backend):
    subject = Rookery(replace(POINT, family="file", size=str(model_file), backend=backend))
    subject.load()
    split = [subject.read([3, 1, 4]), subject.read([1])]
    subject.forget()
    assert subject.read([3, 1, 4]) == split[0]
    subject.forget()
    assert subject.read([3, 1, 4, 1]) == split[1]
    assert subject.vocabulary == 50


def test_a_measurement_is_whole(model_file):
    answer = measure(*(lambda p: (p, Rookery(p)))(replace(POINT, family="file", size=str(model_file))))
    assert answer["parameters"] == sum(t.size for t in checkpoints.load(model_file).tensors.values())
    assert answer["first_token_s"] > 0
    assert answer["tokens_per_s"] > 0
    assert min(answer[name] for name in ("before_bytes", "loaded_bytes", "load_peak_bytes", "peak_bytes")) > 0
    assert answer["gpu_peak_bytes"] is None


@contextmanager
def held(size: int) -> Iterator[None]:
    """Memory of the kernel's, given back at the end: what malloc frees it may keep, and use again."""
    with mmap.mmap(-1, size) as memory:
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 1
        yield


@pytest.mark.skipif(resident_bytes() is None, reason="this kernel does not say how much memory a process has")
def test_the_peak_is_what_was_held_since_the_reset():
    with held(64 << 20):
        pass
    high = peak_bytes()
    assert reset_peak()
    low = peak_bytes()
    assert high - low > 48 << 20
    with held(32 << 20):
        assert 24 << 20 < peak_bytes() - low < 48 << 20


def test_a_process_of_its_own_measures_a_point(model_file):
    row = measure_apart(replace(POINT, family="file", size=str(model_file)), 60, 2 << 30)
    assert row.skipped == ""
    assert row.tokens_per_s > 0
    assert row.running_bytes == max(0, row.peak_bytes - row.before_bytes)


def test_what_a_process_cannot_do_is_a_row_with_its_reason(model_file, tmp_path):
    point = replace(POINT, family="file", size=str(model_file))
    assert measure_apart(point, 0.01, None).skipped == "it took longer than 0.01 s"
    broken = replace(point, size=str(tmp_path / "none.safetensors"))
    assert "it failed: " in measure_apart(broken, 60, None).skipped
    # 0.1B in float32 is 0.76 GB.
    assert (
        measure_apart(POINT, 60, 400 << 20).skipped == "it needs more memory than the 0.4 GB that are allowed"
    )


def test_rows_go_through_the_file(tmp_path):
    rows = [
        ROW,
        Row(point=replace(POINT, context=9, round=2), skipped='a "reason", with commas'),
        replace(ROW, point=replace(POINT, device="cuda"), attention="sdpa", gpu_peak_bytes=7),
    ]
    write_rows(rows, tmp_path / "bench.csv")
    assert read_rows(tmp_path / "bench.csv") == rows
    assert rows[0].running_bytes == 5000
    assert rows[1].running_bytes is None
    assert replace(ROW, peak_bytes=500).running_bytes == 0
    assert rows[2].running_bytes == 7
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column"):
        read_rows(tmp_path / "other.csv")
    text = (tmp_path / "bench.csv").read_text().replace(",40,", ",forty,")
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(DataError, match="line 2 cannot be read"):
        read_rows(tmp_path / "bad.csv")


def test_what_is_in_the_file_is_not_measured_again(tmp_path):
    points = points_of_families(["rwkv"], contexts=[8, 16], rounds=1)
    asked, told = [], []

    def interrupted(point, limit_s, memory):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(point)
        return fake(point, limit_s, memory)

    with pytest.raises(KeyboardInterrupt):
        run(points, tmp_path, measure=interrupted)
    rows = run(
        points,
        tmp_path,
        measure=lambda point, limit_s, memory: asked.append(point) or fake(point, limit_s, memory),
        advance=lambda done, total: told.append((done, total)),
    )
    assert asked == points
    assert [row.point for row in rows] == points
    assert told == [(0, 2), (1, 2), (2, 2)]
    with (tmp_path / "bench.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4


def test_longer_contexts_of_what_failed_are_not_tried(tmp_path):
    points = points_of_families(["rwkv"], contexts=[8, 16, 32], backends=["native", "torch"], rounds=2)
    asked = []

    def slow(point, limit_s, memory):
        asked.append(point)
        if point.backend == "torch" and point.context == 16:
            return Row(point=point, skipped="it took longer than 1 s")
        return fake(point, limit_s, memory)

    rows = run(points, tmp_path, measure=slow)
    of_torch = {(r.point.round, r.point.context): r.skipped for r in rows if r.point.backend == "torch"}
    assert of_torch == {
        (0, 8): "",
        (0, 16): "it took longer than 1 s",
        (0, 32): "at context 16 it took longer than 1 s",
        (1, 8): "",
        (1, 16): "it took longer than 1 s",
        (1, 32): "at context 16 it took longer than 1 s",
    }
    assert sum(point.backend == "torch" for point in asked) == 3
    assert not any(row.skipped for row in rows if row.point.backend == "native")
    again = run(points, tmp_path, measure=fake, again=True)
    assert not any(row.skipped for row in again)


def test_what_will_not_fit_is_not_tried(tmp_path):
    points = points_of_families(["neox"], ["160m"], contexts=[8, 1 << 20], rounds=1)
    rows = run(points, tmp_path, measure=fake, memory=2_000_000_000)
    assert rows[0].skipped == ""
    assert rows[1].skipped.startswith("it needs about ")
    assert rows[1].skipped.endswith("GB of memory, and 2.0 GB are allowed")


def test_the_median_of_the_rounds_counts(tmp_path):
    points = points_of_families(["rwkv"], contexts=[100], backends=["native"], rounds=3)
    (summary,) = summaries(run(points, tmp_path, measure=fake))
    assert summary.median("first_token_s") == 2.0
    assert summary.median("gpu_peak_bytes") is None


def test_the_report_shows_every_line_and_every_gap(tmp_path):
    points = points_of_families(
        ["rwkv", "neox"],
        ["0.1B", "0.4B", "160m"],
        contexts=[8, 16],
        backends=["native", "transformers"],
        rounds=1,
    )
    rows = run(
        points,
        tmp_path,
        measure=lambda point, limit_s, memory: (
            Row(point=point, skipped="it took longer than 300 s")
            if (point.size, point.context) == ("0.4B", 16)
            else fake(point, limit_s, memory)
        ),
    )
    text = write_report(rows, tmp_path).read_text()
    for name in (
        "RWKV-7 0.1B, native float32",
        "RWKV-7 0.4B, native float32",
        "Pythia 160m, transformers float32",
    ):
        assert name in text
    assert "it took longer than 300 s" in text
    assert "Pythia: sdpa" in text
    assert "By size" in text
    made = {path.name for path in tmp_path.iterdir()}
    plots = {"first_token.png", "decode.png", "memory.png"}
    assert made == plots | {f"size_{name}" for name in plots} | {"bench.csv", "index.html"}


def test_a_report_of_nothing_says_so(tmp_path):
    text = write_report([Row(point=POINT, skipped="it failed: why")], tmp_path).read_text()
    assert "Nothing could be measured." in text
    assert "it failed: why" in text


def test_the_command_measures_a_file(model_file, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--context", "4", "--tokens", "2", "--rounds", "1", "--threads", "1", "--backend", "native"]
    assert main(["bench", str(model_file), *options, "--device", "cpu", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "file tiny.safetensors, native float32 on cpu, context 4: first token after" in printed
    assert printed.strip().endswith("index.html")
    assert (out / "bench.csv").exists()
    assert main(["bench", str(model_file), *options, "--device", "cpu", "--out", str(out)]) == 0
    assert "first token" not in capsys.readouterr().out


def test_the_command_says_how_to_go_on(model_file, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "measure_apart", interrupted)
    options = ["--context", "4", "--backend", "native", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(["bench", str(model_file), *options]) == 130
    assert "The same command measures what is missing." in capsys.readouterr().err


def test_the_command_refuses_what_it_cannot_measure(capsys):
    for arguments, problem in (
        ([], "give a MODEL, or families"),
        (["model", "--family", "rwkv"], "give a MODEL, or families"),
        (["model", "--sizes", "0.1B"], "--sizes are of families"),
        (["--family", "gpt"], "no family 'gpt'"),
    ):
        assert main(["bench", *arguments]) == 2
        assert problem in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "--family", "rwkv", "--context", "1x"])


def test_a_gpu_is_measured_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch_backend, "has_cuda", lambda: True)
    assert devices() == ["cpu", "cuda"]
    monkeypatch.setattr(torch_backend, "has_cuda", lambda: False)
    assert devices() == ["cpu"]
    points = points_of_families(["rwkv"], contexts=[8], rounds=1, devices=["cpu", "cuda"])
    assert [(p.backend, p.device) for p in points] == [("native", "cpu"), ("torch", "cpu"), ("torch", "cuda")]


def test_sizes_of_rwkv_are_the_presets():
    assert FAMILIES["rwkv"].names == list(PRESETS["7"])
    assert families_module.rwkv_config("rwkv5", "0.4B").version == "5.2"
