"""What a person sees of a run: a progress bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from rookery.config import ModelConfig
from rookery.files import shown
from rookery.train.config import TrainConfig
from rookery.train.metrics import Metrics

__all__ = [
    "PlainReporter",
    "Reporter",
    "RichReporter",
    "RunFacts",
    "SilentReporter",
    "duration",
    "make_reporter",
]

# Seconds between plain lines of progress.
_PLAIN_INTERVAL = 10.0


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is known of a run at its beginning."""

    config: TrainConfig
    model: ModelConfig
    parameters: int
    tokenizer: str
    training_tokens: int
    validation_tokens: int
    device: str
    run: Path
    step: int
    """Steps done in the sittings before this one."""


class Reporter(Protocol):
    """Is told what happens in a run."""

    def begin(self, facts: RunFacts) -> None:
        """The run begins, or goes on."""

    def step(self, row: Metrics, spent: float, seconds_left: float | None) -> None:
        """A step is done; ``spent`` is the part of the budget that is used, 0 to 1."""

    def validation(self, row: Metrics) -> None:
        """A validation is done."""

    def saved(self, run: Path, step: int) -> None:
        """A checkpoint is on the disk."""

    def end(self) -> None:
        """The run has ended, or failed."""


class SilentReporter:
    """Says nothing."""

    def begin(self, facts: RunFacts) -> None:
        """Say nothing."""

    def step(self, row: Metrics, spent: float, seconds_left: float | None) -> None:
        """Say nothing."""

    def validation(self, row: Metrics) -> None:
        """Say nothing."""

    def saved(self, run: Path, step: int) -> None:
        """Say nothing."""

    def end(self) -> None:
        """Say nothing."""


class PlainReporter:
    """Lines: one every ten seconds, and one for each validation."""

    def __init__(self, console: Console):
        self._console = console
        self._recent = _Recent()
        self._next = 0.0

    def begin(self, facts: RunFacts) -> None:
        """Print what is to be trained."""
        self._print(_headline(facts))

    def step(self, row: Metrics, spent: float, seconds_left: float | None) -> None:
        """Print the loss and the speed, if the last line is old enough."""
        self._recent.add(row)
        now = time.monotonic()
        if now >= self._next or spent >= 1:
            self._next = now + _PLAIN_INTERVAL
            self._print(
                f"step {row.step}  {spent:4.0%}  loss {self._recent.loss:.4f}  "
                f"{self._recent.speed:,.0f} tokens/s  {duration(seconds_left)} left"
            )

    def validation(self, row: Metrics) -> None:
        """Print the validation loss."""
        self._print(_validation_line(row))

    def saved(self, run: Path, step: int) -> None:
        """Print the folder."""
        self._print(f"saved {shown(run)} (step {step})")

    def end(self) -> None:
        """Say nothing more."""

    def _print(self, line: str) -> None:
        # No wrapping and no markup: a line of a log is one line, and a path may have brackets.
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class RichReporter:
    """A progress bar with loss, validation loss, speed and time left; validations stay above it as lines."""

    def __init__(self, console: Console):
        self._console = console
        self._recent = _Recent()
        self._validation = ""
        self._task: TaskID | None = None
        self._progress = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[status]}"),
            console=console,
            refresh_per_second=4,
            transient=True,
        )

    def begin(self, facts: RunFacts) -> None:
        """Print what is to be trained, and show the bar."""
        self._console.print(_headline(facts), markup=False, highlight=False)
        self._task = self._progress.add_task("training", total=1.0, status="beginning")
        self._progress.start()

    def step(self, row: Metrics, spent: float, seconds_left: float | None) -> None:
        """Move the bar."""
        self._recent.add(row)
        rest = (
            f"{self._recent.speed:,.0f} tokens/s · {duration(seconds_left)} left"
            if spent < 1
            else "reading all that is held out"
        )
        status = f"loss [bold]{self._recent.loss:.3f}[/]{self._validation} · {rest}"
        assert self._task is not None
        self._progress.update(self._task, completed=spent, status=status)

    def validation(self, row: Metrics) -> None:
        """Print the validation loss above the bar."""
        bits = f" ({row.bits_per_byte:.3f} bits/byte)" if row.bits_per_byte is not None else ""
        self._validation = f" · held out [bold]{row.valid_loss:.3f}[/]{bits}"
        self._console.print(_validation_line(row), markup=False, highlight=False)

    def saved(self, run: Path, step: int) -> None:
        """Say nothing: the command says at the end where the model is."""

    def end(self) -> None:
        """Take the bar away."""
        self._progress.stop()


def make_reporter(console: Console) -> Reporter:
    """The reporter that suits where the output goes."""
    return RichReporter(console) if console.is_terminal else PlainReporter(console)


class _Recent:
    """Loss and speed of the last steps, smoothed over about twenty."""

    def __init__(self) -> None:
        self.loss = 0.0
        self._seconds_per_token = 0.0
        self._count = 0

    def add(self, row: Metrics) -> None:
        assert row.loss is not None
        assert row.tokens_per_second is not None
        self._count += 1
        weight = max(1 / self._count, 0.05)
        self.loss += weight * (row.loss - self.loss)
        self._seconds_per_token += weight * (1 / row.tokens_per_second - self._seconds_per_token)

    @property
    def speed(self) -> float:
        return 1 / self._seconds_per_token if self._seconds_per_token else 0.0


def _headline(facts: RunFacts) -> str:
    config, model = facts.config, facts.model
    verb = f"Resuming from step {facts.step}" if facts.step else "Training"
    budget = f"{config.tokens:,} tokens" if config.tokens is not None else f"{config.minutes:g} minutes"
    return (
        f"{verb}: RWKV-{model.version}, {model.num_layers} layers, {model.width} wide, "
        f"{facts.parameters / 1e6:.2f} M parameters, on {facts.device}\n"
        f"Data: {facts.training_tokens:,} tokens to train on, {facts.validation_tokens:,} held out "
        f"({facts.tokenizer})\n"
        f"Budget: {budget}, {config.batch} x {config.context} in a step; run folder: {shown(facts.run)}"
    )


def _validation_line(row: Metrics) -> str:
    bits = f"  {row.bits_per_byte:.4f} bits/byte" if row.bits_per_byte is not None else ""
    where = f"step {row.step}  {row.tokens:,} tokens  {duration(row.seconds)}"
    return f"{where}  held out: {row.valid_loss:.4f}{bits}"


def duration(seconds: float | None) -> str:
    """Minutes and seconds, or hours too; "?" for None."""
    if seconds is None:
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
