"""`python -m benchmarks.gpu` without a GPU: everything runs in small, and the arithmetic is right."""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from benchmarks.gpt import GPT
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import floors, peers, recurrences, traffic, training, tune
from benchmarks.gpu.parts import COPY, GROUPS, MATRIX, READ, Part, Stage, stages
from benchmarks.gpu.process import in_process, line_of, messages_of
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import FULL, H100, TINY, Fact, Limits, Setting, rates_of
from benchmarks.report import Figure
from rookery.config import preset, sized
from rookery.models import RWKV
from rookery.ops.fused import operators
from rookery.ops.triton import interpreting

CPU = Setting(device="cpu", tiny=True, seed=3)


def strictly(text: str):
    def refuse(constant: str):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_bytes_of_a_recurrence_are_those_of_its_inputs_and_outputs():
    tensor = 8 * 4096 * 64 * 64 * 2
    state = 8 * 64 * 64 * 64 * 4
    shape = (8, 4096, 64, 64)
    tensors = {"wkv7": (7, 13), "wkv6": (5, 9), "wkv5": (4, 7), "wkv4": (3, 5)}
    for name, (forward, backward) in tensors.items():
        recurrence = floors.RECURRENCES[name]
        after = 8 * 3 * 64 * 64 * 4 if name == "wkv4" else state
        assert recurrence.forward(*shape, itemsize=2).bytes == forward * tensor + after
        assert recurrence.backward(*shape, itemsize=2).bytes == backward * tensor
        assert recurrence.both(*shape, itemsize=2).bytes == (forward + backward) * tensor + after


def test_operations_of_a_chunk_are_those_of_its_products():
    """One chunk of one head, product by product, as in `rookery.ops.wkv7.chunked`."""
    C, K = 16, 64
    scores, sums, reads, updates = 4 * 2 * C * C * K, 4 * 2 * C * C * K, 2 * 2 * C * K * K, 2 * 2 * K * C * K
    forward = floors.RECURRENCES["wkv7"].forward(1, C, 1, K, itemsize=2).operations
    assert forward == scores + sums + reads + updates == 786_432
    again = scores + sums // 2 + reads // 2 + updates
    assert floors.RECURRENCES["wkv7"].backward(1, C, 1, K, itemsize=2).operations == 2 * forward + again
    assert floors.RECURRENCES["wkv6"].forward(1, C, 1, K, itemsize=2).operations == 327_680


def test_parameters_are_those_of_the_models():
    config = sized("7", vocab_size=48, width=32, num_layers=2, head_size=16)
    model, gpt = RWKV(config), GPT(vocab_size=48, width=32, num_layers=2, head_size=16)
    assert floors.multiplied(config) == model.num_parameters - 48 * 32
    assert floors.gpt_parameters(config) == sum(p.numel() for p in gpt.parameters()) - 48 * 32
    assert 0.38e9 < floors.multiplied(preset("7", "0.4B")) < 0.39e9
    assert 1.39e9 < floors.multiplied(preset("7", "1.5B")) < 1.40e9


def test_bytes_of_a_token_and_operations_of_a_prompt():
    D, L, N, R, F = 32, 2, 48, 32, 128
    config = sized("7", vocab_size=N, width=D, num_layers=L, head_size=16)
    state = 2 * L * D * 2 + L * 2 * 16 * 16 * 4
    assert floors.decode_bytes(config, 1) == 2 * floors.multiplied(config) + 2 * D + state
    assert floors.decode_bytes(config, 5) - floors.decode_bytes(config, 4) == 2 * D + state
    layers = L * (4 * D * D + 2 * D * F + 4 * 2 * D * R) - 2 * D * R  # no value residual in layer 0
    assert floors.prefill_operations(config, 7) == 2 * (7 * layers + N * D)


def test_model_flop_utilization():
    # 6 x 1.5e9 x 50,000 = 4.5e14 operations a second.
    assert training.mfu(1_500_000_000, 50_000, 1e15) == pytest.approx(0.45)
    assert rates_of("NVIDIA H100 80GB HBM3") is H100
    assert rates_of("NVIDIA A100-SXM4-80GB") is None


def test_what_a_layer_moves_and_keeps_is_counted():
    """Vectors of channels in bfloat16; whoever lets them grow has to say so here."""
    config = preset("7", "0.4B")
    found = traffic.of_layer(config)
    vector = 2 * config.width
    moved = {name: size / vector for name, size in found.moved.items()}
    # Once max(x, 0)^2 of a vector four times as wide: read, written; its gradient: read twice, written.
    assert moved["squared_relu"] == 8
    assert moved["squared_relu_backward"] == 12
    # Twice: the stream, of float32, and what is added to it; their sum, of float32, and its norm.
    assert moved["add_norm"] == pytest.approx(2 * (2 + 1 + 2 + 1), rel=0.01)
    assert found.calls["wkv7_triton"] == found.calls["wkv7_triton_backward"] == 1
    assert moved[traffic.PRODUCTS] + moved[traffic.LOW_RANK] < 73
    assert found.beside_products / vector < 142
    assert found.kept / vector < 31.1
    # Of all versions.
    for config, beside, kept in zip(traffic.ONE_OF_EACH, (92, 98, 152, 143), (23, 26, 34, 31.1), strict=True):
        found = traffic.of_layer(config)
        assert found.beside_products / (2 * config.width) < beside, config.version
        assert found.kept / (2 * config.width) < kept, config.version
    # Nothing is left of what it pretended.
    assert operators.NARROWS == ("cuda",)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("fits", "rows", "found", "tries"),
    [
        (20, 16, 16, [16]),
        (5, 16, 5, [16, 8, 4, 6, 5]),
        (7, 16, 7, [16, 8, 4, 6, 7]),
        (3, 32, 3, [32, 16, 8, 4, 2, 3]),
        (1, 2, 1, [2, 1]),
        (0, 2, 0, [2, 1]),
    ],
)
def test_the_largest_batch_is_found_by_halving_and_then_to_a_quarter(
    fits: int, rows: int, found: int, tries: list[int]
):
    tried = []

    def attempt(rows: int) -> None:
        tried.append(rows)
        if rows > fits:
            raise torch.cuda.OutOfMemoryError

    assert training.largest(rows, attempt) == found
    assert tried == tries


def test_the_plan_has_the_bounds():
    promised = {
        figure.figure: (figure.bound, figure.at_most)
        for stage in stages(GROUPS, FULL, tiny=False)
        for part in stage.parts
        for figure in part.promised
        if figure.bound is not None
    }
    wanted = {
        "wkv7 forward + backward: fla's time / rookery's": (2.0, False),
        "wkv7 forward + backward: rookery": (8.0, True),
        "decode 1.5B, 1 stream: of the limit by bytes read": (0.70, False),
        "decode 1.5B, 320 streams: total": (30_000, False),
        "prefill 1.5B, 8192 tokens: of the measured matrix rate": (0.5, False),
    }
    for name in ("wkv6", "wkv5", "wkv4"):
        wanted[f"{name} forward + backward: fla's time / rookery's"] = (1.3, False)
    for name, sizes in (("wkv7", (64, 128)), ("wkv6", (64, 128)), ("wkv5", (64, 128)), ("wkv4", (64,))):
        for size in sizes:
            wanted[f"{name} forward error, bf16, head size {size}"] = (6e-3, True)
            wanted[f"{name} forward error, fp32, head size {size}"] = (1e-5, True)
    for streams in ("1 stream", "4 streams"):
        wanted[f"decode 0.4B, {streams}, bf16: logits error"] = (2e-2, True)
        wanted[f"decode 0.4B, {streams}, fp32: logits error"] = (1e-4, True)
    for size in ("0.4B", "1.5B"):
        wanted[f"training {size}, T 4096: MFU by 6 N, of the data sheet's rate"] = (0.45, False)
        wanted[f"training {size}, T 4096: RWKV-7 / GPT"] = (0.9, False)
        wanted[f"training {size}, T 16384: RWKV-7 / GPT"] = (1.5, False)
    assert promised == wanted
    assert sum(stage.seconds for stage in stages(GROUPS, FULL, tiny=False)) <= 8 * 60
    assert all(
        figure.bound is None
        for stage in stages(GROUPS, TINY, tiny=True)
        for part in stage.parts
        for figure in part.promised
    )


PART = Part(
    name="some part",
    group="kernels",
    run="nothing:measure",
    promised=(
        Figure("time", math.nan, "ms", 8.0, at_most=True, failed="not measured"),
        Figure("ratio", math.nan, "ratio", 2.0, failed="not measured"),
    ),
)


def test_what_is_promised_and_does_not_come_has_failed(tmp_path):
    path = tmp_path / "figures.json"
    record = Record(path, {"tiny": False}, lambda text: None)
    record.promise(PART)
    record.take(PART, Figure("time", 9.0, "ms"))
    assert strictly(path.read_text())["figures"][1]["failed"] == "not measured"
    record.take(PART, Figure("time", 7.0, "ms"))
    record.take(PART, Figure("beside", math.nan, "ms"))
    record.take(PART, Fact(name="device", value="a GPU"))
    record.fail(PART, "out of memory")
    written = strictly(path.read_text())
    assert written["machine"]["device"] == "a GPU"
    assert {"triton", "fla-core"} <= written["machine"]["versions"].keys()
    assert written["figures"] == [
        {"figure": "time", "value": 7.0, "unit": "ms", "bound": 8.0, "holds": True},
        {
            "figure": "ratio",
            "value": None,
            "unit": "ratio",
            "bound": 2.0,
            "failed": "out of memory",
            "holds": False,
        },
        {
            "figure": "beside",
            "value": None,
            "unit": "ms",
            "bound": None,
            "failed": "the value is nan",
            "holds": None,
        },
    ]


def test_a_part_without_promises_fails_by_its_name():
    record = Record(None, {}, lambda text: None)
    record.fail(Part(name="compiling", group="kernels", run=""), "no compiler")
    assert record.figures[0].failed == "no compiler"
    assert record.figures[0].holds is None


def test_limits_are_known_once_they_are_measured():
    record, part = Record(None, {}, lambda text: None), Part(name="limits", group="limits", run="")
    record.take(part, Figure(COPY, 3000.0, "GB/s"))
    record.take(part, Figure(READ, 3100.0, "GB/s"))
    assert record.limits is None
    with pytest.raises(RuntimeError, match="could not be measured"):
        CPU.measured_limits()
    record.take(part, Figure(MATRIX, 800.0, "TFLOP/s"))
    assert record.limits == Limits(bandwidth=3.1e12, matrix=8e14)


def test_a_stage_has_its_share_and_what_is_left_of_those_before():
    parts = [Part(name=str(i), group="kernels", run="") for i in range(3)]
    plan = [Stage(parts=(part,), seconds=seconds) for part, seconds in zip(parts, (10, 20, 0), strict=True)]
    left = []

    def runner(part, setting, take):
        left.append(round(setting.seconds_left))

    record = Record(None, {}, lambda text: None)
    command.run(plan, CPU, record, runner, minutes=8)
    assert left == [10, 30, 30]
    command.run(plan[2:], CPU, record, runner, minutes=8)
    assert len(left) == 3
    assert record.figures[0].failed == "its time was over before it began"


def test_a_process_gives_figures_as_they_come_and_why_it_ended():
    """Stand-ins for the process of a part: no torch, no time."""
    first = json.dumps(line_of(Figure("time", 7.0, "ms")))
    begin = f"import os, sys; out = os.fdopen(int(sys.argv[-1]), 'w'); print({first}, file=out, flush=True); "
    ends = {
        "os.abort()": "the process ended with signal SIGABRT",
        "sys.exit('out of luck')": "the process ended with status 1: out of luck",
        """print('{"failed_part": "OutOfMemoryError"}', file=out)""": "OutOfMemoryError",
        "pass": None,
    }
    for end, wanted in ends.items():
        taken = []
        failed = in_process(PART, CPU, taken.append, [sys.executable, "-c", begin + end])
        assert taken == [Figure("time", 7.0, "ms")]
        assert failed == wanted if wanted is None else (failed or "").startswith(wanted)


def test_a_process_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.process._GRACE", 0.2)
    setting = Setting(device="cpu", tiny=True, seed=0, deadline=time.monotonic())
    began = time.monotonic()
    hanging = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert in_process(PART, setting, print, hanging) == "its time was over"
    assert time.monotonic() - began < 30


def test_a_setting_and_messages_survive_the_way_to_a_process_and_back():
    setting = Setting(device="cuda", tiny=False, seed=1, limits=Limits(bandwidth=3e12, matrix=8e14))
    assert Setting.from_dict(json.loads(json.dumps(setting.to_dict()))) == setting
    sent = [Figure("a", 1.0, "ms"), Figure("b", math.nan, "ms", failed="why"), Fact(name="c", value=[1])]
    got = list(messages_of(iter([line_of(each) for each in sent])))
    assert repr(got) == repr(sent)


@pytest.mark.parametrize("name", ["wkv5", "wkv6", "wkv7"])
def test_peers_get_what_they_ask_for(name: str):
    """fla's plain functions in the place of its kernels; they take [B, H, T, K], and one scales r."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
        from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6

    def swapped(*tensors):
        return [x.transpose(1, 2) if x.dim() == 4 else x for x in tensors]

    def chunk_rwkv7(r, w, k, v, a, b):
        q, w, k, v, a, b = swapped(r * r.shape[-1] ** 0.5, w, k, v, a, b)
        return dplr_recurrence(q, k, v, a, b, w)[0].transpose(1, 2), None

    def chunk_rwkv6(r, k, v, w, u):
        return naive_recurrent_rwkv6(*swapped(r, k, v, w), u, scale=1.0)[0].transpose(1, 2), None

    random = torch.Generator().manual_seed(0)
    inputs = recurrences.inputs_of(name, 1, 9, 2, 16, dtype=torch.float32, generator=random)
    peer = peers.rwkv7(chunk_rwkv7) if name == "wkv7" else peers.rwkv6(chunk_rwkv6)
    wanted, _ = recurrences.call(name, inputs, "reference")
    torch.testing.assert_close(peer(*inputs), wanted, rtol=1e-4, atol=1e-5)


def test_the_peer_of_wkv4_gets_the_decay_before_its_exponentials():
    def fused_recurrent_rwkv4(w, u, k, v, state):
        y, _ = recurrences.call("wkv4", [-w.exp(), u, k, v], "reference", state[:, :, 0])
        return y, None

    random = torch.Generator().manual_seed(0)
    inputs = recurrences.inputs_of("wkv4", 2, 9, 2, 8, dtype=torch.float32, generator=random)
    wanted, _ = recurrences.call("wkv4", inputs, "reference")
    torch.testing.assert_close(peers.rwkv4(fused_recurrent_rwkv4)(*inputs), wanted)


def run_command(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    command.main()


def test_the_dry_run_goes_through_everything(monkeypatch, tmp_path, capsys):
    path = tmp_path / "figures.json"
    run_command(monkeypatch, "--dry-run", "--compile", "off", "--seed", "5", "--json", str(path))
    written = strictly(path.read_text())
    assert written["machine"]["tiny"] is True
    assert written["machine"]["seed"] == 5
    figures = {row["figure"]: row for row in written["figures"]}
    assert {row["holds"] for row in figures.values()} == {None}
    assert {row["bound"] for row in figures.values()} == {None}
    promised = {
        figure.figure
        for stage in stages(GROUPS, TINY, tiny=True)
        for part in stage.parts
        for figure in part.promised
    }
    assert promised <= figures.keys()
    failed = {name: row["failed"] for name, row in figures.items() if row["value"] is None}
    # What a CPU cannot have: fla's kernels, and a data sheet.
    assert all("fla" in reason or "data sheet" in reason for reason in failed.values()), failed
    for name, row in figures.items():
        if "error" in name:
            assert row["value"] < (2e-2 if "bf16" in name else 1e-4), name
        elif name not in failed:
            assert row["value"] > 0
    printed = capsys.readouterr().out
    assert printed.count("tiny, on a CPU: no measurement") == 1 + len(GROUPS)


def test_some_groups_alone(monkeypatch, tmp_path):
    path = tmp_path / "figures.json"
    run_command(monkeypatch, "--dry-run", "--only", "prefill", "--json", str(path))
    names = [row["figure"] for row in strictly(path.read_text())["figures"]]
    assert {name.split()[0] for name in names} == {"memory", "matrix", "prefill"}


def test_groups_that_are_not_there(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_command(monkeypatch, "--only", "prefill,speed")
    assert "no such group: speed" in capsys.readouterr().err


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_there_is_to_do(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_command(monkeypatch)
    assert "there is no NVIDIA GPU here; --dry-run runs everything" in capsys.readouterr().err


def test_floors_are_printed_without_a_gpu(monkeypatch, capsys):
    run_command(monkeypatch, "--floors")
    printed = capsys.readouterr().out
    assert "Assumed, not measured: 3.35 TB/s, 989 TFLOP/s" in printed
    assert "wkv7 both" in printed


# torch.compile looks at the gradients of all inputs of a graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.slow
def test_training_is_traced_and_computed_again(monkeypatch):
    """Compiled blocks, and activations computed again where nothing fits otherwise."""
    real, calls = training.largest, []

    def once(rows, attempt):
        calls.append(rows)
        return 0 if len(calls) == 1 else real(rows, attempt)

    monkeypatch.setattr(training, "largest", once)
    messages = list(training.measure(CPU, size="tiny", context=12))
    facts = {each.name: each.value for each in messages if isinstance(each, Fact)}
    assert not any("failed" in name for name in facts), facts
    assert any("activations computed again" in value for value in facts.values())


@pytest.mark.slow
def test_a_part_in_a_process_of_its_own():
    (stage,) = stages((), TINY, tiny=True)
    taken = []
    assert in_process(stage.parts[0], CPU, taken.append) is None
    assert [each.figure for each in taken if isinstance(each, Figure)] == [COPY, READ, MATRIX]
    broken = Part(name="broken", group="prefill", run="prefill:measure", options={"size": "no such size"})
    assert in_process(broken, CPU, taken.append) == "KeyError: 'no such size'"


def test_choices_of_kernels_are_made_for_a_call_alone():
    from rookery.ops.wkv7 import triton as module

    before = module.SPAN, module.warps(64, 64)
    with tune.chosen("wkv7", tune.variant("SPAN=2,warps=2,precision=bf16")):
        assert (module.SPAN, module.warps(64, 64), module.precision(torch.ones(1))) == (2, 2, "bf16")
    assert (module.SPAN, module.warps(64, 64)) == before
    for recurrence, choices in tune.TRIED.items():
        for each in choices:
            with tune.chosen(recurrence, tune.variant(each)):
                pass


def test_kernels_are_tried_with_other_choices(tmp_path, capsys):
    written = tmp_path / "tune.json"
    tune.main(["wkv7", "--dry-run", "--try", "SPAN=1", "--try", "CHUNK=12", "--json", str(written)])
    figures = {each["figure"]: each for each in strictly(written.read_text())["figures"]}
    assert all(figures[f"{name}: forward"]["value"] > 0 for name in ("as it is", "SPAN=1"))
    assert figures["as it is: forward error"]["value"] < 6e-3
    # Where there is a GPU, the CPU has no kernels to try anything with.
    assert not interpreting() or "power of 2" in figures["CHUNK=12: forward + backward"]["failed"]
    assert "no measurement" in capsys.readouterr().out
    for wrong, told in (("FOO=1", "has no FOO"), ("SPAN", "is not NAME=VALUE")):
        with pytest.raises(SystemExit):
            tune.main(["wkv7", "--dry-run", "--try", wrong])
        assert told in capsys.readouterr().err
