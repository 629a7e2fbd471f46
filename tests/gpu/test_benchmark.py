"""`python -m benchmarks.gpu` on the device that it is for; where there is none, a rehearsal."""

from __future__ import annotations

from math import isnan

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import tune
from benchmarks.gpu.parts import GROUPS, stages
from benchmarks.gpu.process import here
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting

SETTING = Setting(device="cuda", tiny=True, seed=3, compile="off")


def rehearsed(groups: tuple[str, ...]) -> Record:
    record = Record(None, {}, lambda text: None)
    plan = stages(groups, SETTING.shapes, tiny=True)
    command.run(plan, SETTING, record, here, minutes=float("inf"))
    return record


def failures(record: Record) -> dict[str, str | None]:
    return {figure.figure: figure.failed for figure in record.figures if figure.failed or isnan(figure.value)}


def test_training_runs_to_its_end():
    record = rehearsed(("training",))
    assert failures(record) == {}
    assert record.facts["training tiny, T 12: RWKV-7"] == "micro-batch 2, as it is"


@pytest.mark.slow
def test_all_of_it_runs_to_its_end():
    """All but the peers' kernels, whose tuning asks the device's driver."""
    record = rehearsed(GROUPS)
    assert [name for name in failures(record) if "fla" not in name and "chunk_rwkv" not in name] == []
    for name in ("wkv4", "wkv5", "wkv6", "wkv7"):
        assert record.facts[f"implementation of {name}"] == "triton"
    assert record.facts["decode tiny, 1 stream: step"] == "few streams"


@pytest.mark.slow
def test_tuning_runs_to_its_end():
    figures = list(tune.measure(SETTING, "wkv7", {"as it is": {}, "bf16": {"precision": "bf16"}}))
    assert [figure.failed for figure in figures if figure.failed] == []
    assert {figure.figure for figure in figures} >= {"bf16: forward", "bf16: forward + backward"}
