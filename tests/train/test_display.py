from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rookery.config import sized
from rookery.train import TrainConfig
from rookery.train.display import PlainReporter, RichReporter, RunFacts, duration, make_reporter
from rookery.train.metrics import Metrics, MetricsFile, read_metrics
from rookery.train.plotting import plot_loss, smooth


def step(n: int, loss: float = 2.0) -> Metrics:
    return Metrics(
        step=n,
        tokens=100 * n,
        seconds=n / 3,
        loss=loss,
        learning_rate=1e-3,
        grad_norm=0.1,
        tokens_per_second=1234.5,
    )


def validation(n: int) -> Metrics:
    return Metrics(step=n, tokens=100 * n, seconds=75.0, valid_loss=1.5, bits_per_byte=2.164)


FACTS = RunFacts(
    config=TrainConfig(data=("x",), minutes=2.5),
    model=sized("7", vocab_size=256, width=32, num_layers=2),
    parameters=1_234_567,
    tokenizer="bytes",
    training_tokens=5_000_000,
    validation_tokens=70_000,
    device="cpu",
    run=Path("runs/[brackets]"),
    step=0,
)


def shown(terminal: bool, spent: float = 1.0) -> str:
    file = io.StringIO()
    reporter = make_reporter(Console(file=file, force_terminal=terminal, width=100, _environ={}))
    assert isinstance(reporter, RichReporter if terminal else PlainReporter)
    reporter.begin(FACTS)
    reporter.step(step(1), 0.4, 90.0)
    reporter.validation(validation(1))
    reporter.step(step(2), spent, 0.0)
    reporter.saved(Path("runs/x"), 2)
    reporter.end()
    return file.getvalue()


def test_a_pipe_gets_plain_lines():
    lines = shown(terminal=False).splitlines()
    assert lines == [
        "Training: RWKV-7, 2 layers, 32 wide, 1.23 M parameters, on cpu",
        "Data: 5,000,000 tokens to train on, 70,000 held out (bytes)",
        "Budget: 2.5 minutes, 16 x 512 in a step; run folder: runs/[brackets]",
        "step 1   40%  loss 2.0000  1,234 tokens/s  1:30 left",
        "step 1  100 tokens  1:15  held out: 1.5000  2.1640 bits/byte",
        "step 2  100%  loss 2.0000  1,234 tokens/s  0:00 left",
        "saved runs/x (step 2)",
    ]


def test_a_terminal_gets_a_bar():
    output = shown(terminal=True, spent=0.9)
    assert "\x1b[" in output
    assert "held out: 1.5000  2.1640 bits/byte" in output
    assert "tokens/s" in output
    # The validation at the end takes a while.
    assert "reading all that is held out" in shown(terminal=True)
    assert "runs/[brackets]" in output


def test_metrics_come_back_to_the_last_bit(tmp_path):
    rows = [step(1, loss=0.1 + 0.2), validation(1), step(2, loss=1 / 3)]
    file = MetricsFile(tmp_path / "m.csv", rows[:1])
    for row in rows[1:]:
        file.add(row)
    file.close()
    assert read_metrics(tmp_path / "m.csv") == rows
    header = (tmp_path / "m.csv").read_text().splitlines()[0]
    columns = "step,tokens,seconds,loss,learning_rate,grad_norm,tokens_per_second,valid_loss,bits_per_byte"
    assert header == columns


@pytest.mark.parametrize(
    "rows",
    [
        [step(n, loss=5 - n / 50) for n in range(1, 101)] + [validation(50), validation(100)],
        [step(1)],
        [validation(1)],
        [],
    ],
)
def test_the_picture_is_a_png(tmp_path, rows):
    plot_loss(rows, tmp_path / "loss.png", title="A run")
    data = (tmp_path / "loss.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1200, 720)


def test_smoothing_keeps_a_line_and_quiets_noise():
    line = np.linspace(5, 1, 500)
    np.testing.assert_allclose(smooth(line)[:470], line[:470])
    # At the end there is nothing after a step to weigh against what was before it.
    np.testing.assert_allclose(smooth(line), line, atol=0.2)
    noise = np.random.default_rng(0).normal(size=2000)
    assert smooth(noise)[300:].std() < 0.3
    assert len(smooth(noise[:1])) == 1


def test_durations():
    assert [duration(s) for s in (None, 5, 65, 3723)] == ["?", "0:05", "1:05", "1:02:03"]
