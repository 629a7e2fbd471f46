"""Whole runs of a tiny model: what they leave, how they stop, and that they go on as if they had not."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rookery import checkpoints
from rookery.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingExtraError,
    TokenizerError,
    TrainingError,
)
from rookery.tokenizers import from_spec
from rookery.train import loop, resume, train
from rookery.train.display import SilentReporter
from rookery.train.metrics import Metrics, read_metrics


class Interrupter(SilentReporter):
    """Sends this process a signal when something happens."""

    def __init__(self, *, step: int = 0, number: signal.Signals = signal.SIGINT, times: int = 1):
        self.at_step, self.number, self.times = step, number, times

    def step(self, row: Metrics, spent: float, seconds_left: float | None) -> None:
        if row.step == self.at_step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


def exact(run: Path) -> list[tuple]:
    """What of a run's record must be the same again: all but the clock."""
    rows = read_metrics(run / "metrics.csv")
    return [
        (r.step, r.tokens, r.loss, r.learning_rate, r.grad_norm, r.valid_loss, r.bits_per_byte) for r in rows
    ]


def weights(run: Path) -> dict[str, np.ndarray]:
    return checkpoints.load(run).tensors


def test_a_run_leaves_a_model_and_its_record(tiny, tmp_path):
    config = tiny()
    result = train(config)
    run = tmp_path / "run"
    assert result.run == run
    assert sorted(path.name for path in run.iterdir()) == [
        "config.json",
        "loss.png",
        "metrics.csv",
        "model.safetensors",
        "training-state.pt",
    ]
    rows = read_metrics(run / "metrics.csv")
    steps = [row for row in rows if row.loss is not None]
    assert [row.step for row in steps] == list(range(1, 9))
    assert [row.tokens for row in steps] == list(range(64, 513, 64))
    assert [row.step for row in rows if row.valid_loss is not None] == [3, 6, 8]
    assert all(row.grad_norm and row.learning_rate and row.tokens_per_second for row in steps)
    # Random weights know nothing, and eight steps teach something.
    assert steps[0].loss == pytest.approx(np.log(256), abs=0.1)
    assert steps[-1].loss < steps[0].loss - 1
    assert (result.step, result.tokens, result.interrupted) == (8, 512, None)
    assert result.valid_loss == rows[-1].valid_loss
    assert result.bits_per_byte == pytest.approx(result.valid_loss / np.log(2))

    saved = checkpoints.load(run)
    assert saved.tokenizer is not None
    assert from_spec(saved.tokenizer).kind == "bytes"
    for name, parameter in result.model.state_dict().items():
        np.testing.assert_array_equal(saved.tensors[name], parameter.numpy())


@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2", "6", "7"])
def test_every_version_learns(tiny, version):
    head = {"head_size": None} if version == "4" else {}
    result = train(tiny(version=version, valid_every=0, **head))
    losses = [row.loss for row in read_metrics(result.run / "metrics.csv") if row.loss is not None]
    assert losses[-1] < losses[0] - 0.5
    assert checkpoints.load(result.run).config.version == version


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 5, 6])
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tiny, tmp_path, step, number):
    options = {"accumulate": 2, "weight_decay": 0.1, "seed": 3}
    train(tiny(out=str(tmp_path / "unbroken"), **options))
    broken = train(tiny(**options), reporter=Interrupter(step=step, number=number))
    assert (broken.step, broken.interrupted, broken.valid_loss) == (step, number, None)
    result = resume(broken.run)
    assert (result.step, result.interrupted) == (8, None)
    assert exact(result.run) == exact(tmp_path / "unbroken")
    for name, tensor in weights(tmp_path / "unbroken").items():
        np.testing.assert_array_equal(weights(result.run)[name], tensor, err_msg=name)


def test_a_run_of_documents_resumes_exactly_too(tiny, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(30):
        (folder / f"{n}.txt").write_text(f"Document {n}.\n" * (n % 4 + 1))
    options = {"data": (str(folder),), "tokenizer": "chars", "valid_documents": True, "valid_fraction": 0.2}
    train(tiny(out=str(tmp_path / "unbroken"), **options))
    broken = train(tiny(**options), reporter=Interrupter(step=4))
    assert exact(resume(broken.run).run) == exact(tmp_path / "unbroken")


def test_after_a_crash_it_goes_on_from_the_last_checkpoint(tiny, tmp_path):
    class Crash(SilentReporter):
        def step(self, row: Metrics, spent: float, seconds_left: float | None) -> None:
            if row.step == 7:
                raise RuntimeError("power cut")

    train(tiny(out=str(tmp_path / "unbroken"), save_every=4))
    with pytest.raises(RuntimeError, match="power cut"):
        train(tiny(save_every=4), reporter=Crash())
    # What was recorded after the checkpoint happens again, and is recorded once.
    with (tmp_path / "run" / "metrics.csv").open("a") as file:
        file.write("8,51")
    result = resume(tmp_path / "run")
    assert exact(result.run) == exact(tmp_path / "unbroken")


def test_the_same_seed_gives_the_same_run_and_another_another(tiny, tmp_path):
    runs = [train(tiny(out=str(tmp_path / str(n)), seed=s)).run for n, s in enumerate([1, 1, 2])]
    assert exact(runs[0]) == exact(runs[1])
    assert exact(runs[0]) != exact(runs[2])


def test_a_second_signal_ends_at_once(tiny):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), reporter=Interrupter(step=2, times=2))
    with pytest.raises(SystemExit) as ended:
        train(tiny(overwrite=True), reporter=Interrupter(step=2, times=2, number=signal.SIGTERM))
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_are_left_alone_outside_of_the_main_thread(tiny):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(tiny(valid_every=0))))
    thread.start()
    thread.join()
    assert results[0].step == 8


def test_a_signal_during_validation_stops_it_and_resuming_does_it_again(tiny, tmp_path, monkeypatch):
    import rookery.train.loop as loop

    train(tiny(out=str(tmp_path / "unbroken")))
    evaluate = loop.evaluate

    def interrupted(*args, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*args, **options)

    monkeypatch.setattr(loop, "evaluate", interrupted)
    broken = train(tiny())
    assert (broken.step, broken.interrupted) == (3, signal.SIGINT)
    monkeypatch.undo()
    assert exact(resume(broken.run).run) == exact(tmp_path / "unbroken")


def test_a_run_is_not_overwritten_unless_asked(tiny, tmp_path):
    train(tiny(valid_every=0))
    before = weights(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"there is a run here already .* --resume, .* --overwrite"):
        train(tiny(seed=9))
    for name, tensor in weights(tmp_path / "run").items():
        np.testing.assert_array_equal(before[name], tensor)
    train(tiny(seed=9, overwrite=True))
    assert any((weights(tmp_path / "run")[name] != tensor).any() for name, tensor in before.items())


def test_bad_data_leaves_no_run_folder(tiny, tmp_path):
    with pytest.raises(DataError, match="too few for a context"):
        train(tiny(context=100_000))
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_resumed_says_why(tiny, tmp_path, text_file):
    with pytest.raises(ConfigError, match="there is no run in this folder"):
        resume(tmp_path / "nowhere")
    run = train(tiny(), reporter=Interrupter(step=2)).run
    text = text_file.read_text()
    text_file.write_text(text.replace("beer", "milk"))
    with pytest.raises(DataError, match="the data has changed since the run"):
        resume(run)
    text_file.write_text(text)
    resume(run)
    with pytest.raises(ConfigError, match=r"this run is finished; .* --init"):
        resume(run)
    state = (run / "training-state.pt").read_bytes()
    for broken in (state[: len(state) // 2], b"", b"nonsense"):
        (run / "training-state.pt").write_bytes(broken)
        with pytest.raises(CheckpointError, match="not a training state"):
            resume(run)
    torch.save({"format": 99}, run / "training-state.pt")
    with pytest.raises(CheckpointError, match="of format 1"):
        resume(run)
    (run / "training-state.pt").unlink()
    with pytest.raises(ConfigError, match="ended before its first checkpoint"):
        resume(run)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tiny, tmp_path, monkeypatch):
    import rookery.train.loop as loop

    accumulate = loop.accumulate_gradients
    steps = iter(range(1, 100))

    def diverges(model, rows, config):
        loss = accumulate(model, rows, config)
        return loss * float("nan") if next(steps) == 6 else loss

    monkeypatch.setattr(loop, "accumulate_gradients", diverges)
    with pytest.raises(TrainingError, match=r"step 6: the loss is nan; the checkpoint of step 4 in .*run"):
        train(tiny(save_every=4))
    monkeypatch.undo()
    assert all(np.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())
    assert resume(tmp_path / "run").step == 8


def test_a_gradient_that_is_not_finite_ends_the_run(tiny, tmp_path, monkeypatch):
    import rookery.train.loop as loop

    accumulate = loop.accumulate_gradients

    def overflows(model, rows, config):
        loss = accumulate(model, rows, config)
        model.head.weight.grad[3, 4] = float("inf")
        return loss

    monkeypatch.setattr(loop, "accumulate_gradients", overflows)
    with pytest.raises(
        TrainingError, match=r"step 1: the gradient is (inf|nan); there was no checkpoint yet"
    ):
        train(tiny())
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_minutes_are_a_budget(tiny, monkeypatch):
    import rookery.train.loop as loop

    # A clock that goes on by a tenth of a second whenever it is read.
    readings = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(readings) / 10))
    result = train(tiny(tokens=None, minutes=0.1, valid_every=0, warmup_steps=0))
    assert 6 <= result.seconds < 6.5
    rows = [row for row in read_metrics(result.run / "metrics.csv") if row.learning_rate]
    assert len(rows) == result.step > 10
    rates = [row.learning_rate for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(5e-3, rel=0.01)
    assert rates[-1] == pytest.approx(5e-4, rel=0.1)


def test_a_run_starts_from_a_model(tiny, tmp_path, text_file):
    first = train(tiny(tokenizer="chars"))
    options = {"layers": None, "width": None, "head_size": None, "valid_every": 0}
    second = train(tiny(init=str(first.run), out=str(tmp_path / "second"), **options))
    assert second.tokenizer.to_spec() == first.tokenizer.to_spec()
    rows = read_metrics(second.run / "metrics.csv")
    assert rows[0].loss < read_metrics(first.run / "metrics.csv")[0].loss - 1
    text_file.write_text("Ω" * 1000)
    with pytest.raises(TokenizerError, match="Ω"):
        train(tiny(init=str(first.run), out=str(tmp_path / "third"), **options))
    with pytest.raises(ConfigError, match="the tokenizer has 256 ids, but the model"):
        train(tiny(init=str(first.run), out=str(tmp_path / "third"), tokenizer="bytes", **options))


def test_explicit_validation_data(tiny, tmp_path):
    (tmp_path / "valid.txt").write_text("x" * 50)
    result = train(tiny(valid_data=(str(tmp_path / "valid.txt"),)))
    assert result.valid_loss is not None
    (tmp_path / "valid.txt").write_text("x")
    with pytest.raises(DataError, match=r"valid\.txt: one token to validate on"):
        train(tiny(valid_data=(str(tmp_path / "valid.txt"),), overwrite=True))


def test_a_gpu_that_is_not_there_is_said(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch finds no GPU"):
        train(tiny(device="cuda"))


def test_without_matplotlib_the_extra_is_named_before_training(tiny, tmp_path, monkeypatch):
    import rookery.train.loop as loop

    def missing(module, *, extra, purpose):
        raise MissingExtraError(f"{purpose} needs {module}: rookery[{extra}]")

    monkeypatch.setattr(loop, "require", missing)
    with pytest.raises(MissingExtraError, match=r"needs matplotlib: rookery\[train\]"):
        train(tiny())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("version", ["4", "7"])
def test_blocks_computed_again_give_the_same_run_from_less_memory(tiny, tmp_path, version, monkeypatch):
    kept: dict[bool, int] = {}
    accumulate = loop.accumulate_gradients

    def counting(model, rows, config):
        sizes: list[int] = []

        def pack(x):
            sizes.append(x.untyped_storage().nbytes())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = accumulate(model, rows, config)
        kept[config.recompute] = kept.get(config.recompute, 0) + sum(sizes)
        return loss

    monkeypatch.setattr(loop, "accumulate_gradients", counting)
    options = {"version": version} | ({"head_size": None} if version == "4" else {})
    train(tiny(**options, out=str(tmp_path / "kept")))
    train(tiny(**options, out=str(tmp_path / "again"), recompute=True))
    assert exact(tmp_path / "again") == exact(tmp_path / "kept")
    assert kept[True] < 0.5 * kept[False]


# torch's compiler warns of what it does itself.
@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_compiled_blocks_give_the_same_run_to_rounding(tiny, tmp_path):
    """Compiled for rows of a step alone, also where blocks are computed again; validation leaves it aside."""
    train(tiny(out=str(tmp_path / "eager")))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train(tiny(out=str(tmp_path / "compiled"), compile=True, recompute=True))
    # One graph for the first block, which has no values to mix with, and one for the second.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    for got, wanted in zip(exact(tmp_path / "compiled"), exact(tmp_path / "eager"), strict=True):
        assert [x for x in got if x is not None] == pytest.approx(
            [x for x in wanted if x is not None], rel=1e-3
        )
