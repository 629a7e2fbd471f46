"""The training loop."""

from __future__ import annotations

import math
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rookery import checkpoints
from rookery.config import ModelConfig
from rookery.errors import ConfigError, DataError, TrainingError, require
from rookery.models import RWKV, from_checkpoint, init_weights
from rookery.tokenizers import Tokenizer, from_spec
from rookery.train.config import TrainConfig
from rookery.train.corpus import Corpus, choose_tokenizer, read_corpus
from rookery.train.data import IGNORED, Rows, TrainingOrder, bytes_of_tokens
from rookery.train.display import Reporter, RunFacts, SilentReporter
from rookery.train.evaluate import evaluate, evaluate_documents, on_device
from rookery.train.loss import loss_of_rows
from rookery.train.memory import keep_freed_memory
from rookery.train.metrics import Metrics, MetricsFile, read_metrics
from rookery.train.optimizer import clip_gradients, make_optimizer, set_learning_rate
from rookery.train.run_folder import Counters, RunFolder, TrainingState
from rookery.train.schedule import Budget, learning_rate
from rookery.train.signals import StopSignals

__all__ = ["TrainResult", "accumulate_gradients", "compile_blocks", "resume", "train"]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run came to."""

    run: Path
    """The run folder."""

    model: RWKV
    """The trained model."""

    tokenizer: Tokenizer
    """Its tokenizer."""

    step: int
    """Steps done."""

    tokens: int
    """Tokens trained on."""

    seconds: float
    """Seconds of training."""

    valid_loss: float | None
    """Nats per token over the whole validation data; None if the run was interrupted."""

    bits_per_byte: float | None
    """The same in bits per byte, where the tokenizer's tokens have bytes."""

    interrupted: signal.Signals | None
    """The signal that ended the run before its budget was spent; it is saved, and can be resumed."""


def train(config: TrainConfig, *, reporter: Reporter | None = None) -> TrainResult:
    """Train a model by a configuration, in a new run folder.

    Raises:
        ConfigError: options that do not fit together, or a run folder that is in use.
        DataError: data that cannot be used.
        TokenizerError: no such tokenizer, or text that it cannot encode.
        CheckpointError: ``config.init`` cannot be read.
        TrainingError: the loss or the gradient is not finite.
        MissingExtraError: matplotlib is not installed.
    """
    config = config.absolute()
    initial = None if config.init is None else checkpoints.load(config.init)
    corpus = read_corpus(config, partial(choose_tokenizer, config, initial))
    if initial is None:
        model = RWKV(config.model_config(corpus.tokenizer.vocab_size))
        init_weights(model, seed=config.seed)
    else:
        model = from_checkpoint(initial, dtype=torch.float32)
    return _Run(config, corpus, model, reporter).train()


def resume(run: str | Path, *, reporter: Reporter | None = None) -> TrainResult:
    """Go on with a run that was interrupted, from its last checkpoint.

    With a token budget, losses and weights are those of a run that was never interrupted, bit for bit, on the
    same machine with the same number of threads.

    Raises:
        ConfigError: there is no run in this folder, or it is finished.
        DataError: the data is not what it was when the run began.
        CheckpointError: the training state is broken.
        TrainingError: the loss or the gradient is not finite.
    """
    folder = RunFolder(Path(run))
    config = folder.read_config()
    state = folder.load()
    if state.counters.finished:
        raise ConfigError(
            f"{run}: this run is finished; to train its model further, start a new run with --init {run}"
        )
    corpus = read_corpus(config, lambda _: from_spec(state.tokenizer))
    model = RWKV(ModelConfig.from_dict(state.model_config))
    model.load_state_dict(state.model)
    return _Run(config, corpus, model, reporter, resumed=(folder, state)).train()


def accumulate_gradients(model: RWKV, rows: Rows, config: TrainConfig) -> Tensor:
    """Add the gradient of the mean loss of some rows to the parameters' gradients.

    The rows go through the model in ``config.accumulate`` parts. The loss of each is divided by the predicted
    tokens of all, so that the gradient, with its addition by ``l2wrap``, is that of one big batch.

    Returns:
        The loss: nats per predicted token, a scalar.
    """
    inputs, targets, starts = on_device(rows, model.emb.weight.device)
    predicted = int((rows.targets != IGNORED).sum())
    n = config.accumulate
    parts = zip(
        inputs.chunk(n), targets.chunk(n), starts.chunk(n) if starts is not None else [None] * n, strict=True
    )
    total = torch.zeros((), device=inputs.device)
    for part_inputs, part_targets, part_starts in parts:
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=config.bf16):
            loss = loss_of_rows(
                model,
                part_inputs,
                part_targets,
                part_starts,
                predicted=predicted,
                positions=inputs.numel() if config.l2wrap else None,
            )
        total += loss.detach()
        loss.backward()
    return total


def compile_blocks(model: nn.Module, *, backend: str = "inductor") -> None:
    """Let torch.compile make one graph of each of a model's blocks, for rows of the size that a step has."""
    for block in model.get_submodule("blocks").children():
        # Rows of a step are all of one size, and a graph for any size would be slower.
        block.compile(dynamic=False, backend=backend)


class _Run:
    """One sitting of a run: what it works on, and where it is."""

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        model: RWKV,
        reporter: Reporter | None,
        resumed: tuple[RunFolder, TrainingState] | None = None,
    ):
        # Now, and not after hours of training, when the picture is drawn.
        require("matplotlib", extra="train", purpose="The picture of the loss")
        self.config = config
        self.tokenizer = corpus.tokenizer
        self.validation = corpus.validation
        self.device = _device(config)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.model = model.to(self.device)
        self.model.recompute = config.recompute
        if config.compile:
            compile_blocks(self.model)
        self.optimizer = make_optimizer(self.model, config)
        self.budget = Budget(config)
        self.reporter = reporter if reporter is not None else SilentReporter()
        self.token_bytes = bytes_of_tokens(corpus.tokenizer)
        self.order = TrainingOrder(
            corpus.training,
            context=config.context,
            batch=config.batch,
            seed=config.seed,
            name=", ".join(config.data),
        )
        self.fingerprint = corpus.training.fingerprint()
        if resumed is None:
            self.folder, self.counters = RunFolder.create(config), Counters()
            self.metrics = MetricsFile(self.folder.metrics)
        else:
            self.folder, state = resumed
            self.counters = state.counters
            if state.fingerprint != self.fingerprint:
                raise DataError(
                    f"{', '.join(config.data)}: the data has changed since the run {self.folder.path} began, "
                    f"so that it cannot go on exactly; start a new run with --init {self.folder.path}"
                )
            self.optimizer.load_state_dict(state.optimizer)
            self.metrics = MetricsFile(self.folder.metrics, self._rows_so_far())
        self.saved_step = self.counters.step
        self.valid = Metrics(step=0, tokens=0, seconds=0)
        # The clock's reading at which this run would have begun, had it never been interrupted.
        self.began = 0.0

    def train(self) -> TrainResult:
        """Step, validate and save until the budget is spent or a signal comes."""
        self.reporter.begin(self._facts())
        self.began = time.perf_counter() - self.counters.seconds
        try:
            with StopSignals() as signals:
                self._loop(signals)
        finally:
            self.metrics.close()
            self.reporter.end()
        last = self.valid if self.counters.finished else None
        return TrainResult(
            run=self.folder.path,
            model=self.model,
            tokenizer=self.tokenizer,
            step=self.counters.step,
            tokens=self.tokens,
            seconds=self.counters.seconds,
            valid_loss=last and last.valid_loss,
            bits_per_byte=last and last.bits_per_byte,
            interrupted=signals.received if last is None else None,
        )

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return self.counters.step * self.config.tokens_per_step

    def _loop(self, signals: StopSignals) -> None:
        while True:
            self.counters.seconds = time.perf_counter() - self.began
            step = self.counters.step
            spent = self.budget.spent(step=step, seconds=self.counters.seconds)
            if spent >= 1 and not signals.stopped:
                self.counters.finished = self._validate(signals, whole=True)
            elif _due(step, self.config.valid_every) and self.counters.validated_step < step:
                self._validate(signals, whole=False)
            if self.counters.finished or signals.stopped:
                self._save()
                return
            if _due(step, self.config.save_every) and self.saved_step < step:
                self._save()
            self._step(spent)

    def _step(self, spent: float) -> None:
        counters, began = self.counters, time.perf_counter()
        rate = learning_rate(self.config, step=counters.step, spent=spent)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        loss = accumulate_gradients(self.model, self.order.rows(counters.step), self.config)
        norm = clip_gradients(self.model.parameters(), self.config.clip)
        measured = {"loss": float(loss), "gradient": norm}
        for name, value in measured.items():
            if not math.isfinite(value):
                raise self._diverged(name, value)
        self.optimizer.step()
        counters.step += 1
        now = time.perf_counter()
        counters.seconds = now - self.began
        row = Metrics(
            step=counters.step,
            tokens=self.tokens,
            seconds=counters.seconds,
            loss=measured["loss"],
            learning_rate=rate,
            grad_norm=measured["gradient"],
            tokens_per_second=self.config.tokens_per_step / (now - began),
        )
        self.metrics.add(row)
        where = {"step": counters.step, "seconds": counters.seconds}
        self.reporter.step(row, self.budget.spent(**where), self.budget.seconds_left(**where))

    def _validate(self, signals: StopSignals, *, whole: bool) -> bool:
        with self._uncompiled():
            score = (evaluate_documents if self.config.valid_documents else evaluate)(
                self.model,
                self.validation,
                context=self.config.context,
                # As many rows as a step has at a time: what fits in memory with gradients fits without.
                batch=self.config.batch // self.config.accumulate,
                token_bytes=self.token_bytes,
                limit=0 if whole else self.config.valid_tokens,
                bf16=self.config.bf16,
                stopped=lambda: signals.stopped,
            )
        if score is None:
            return False
        self.counters.validated_step = self.counters.step
        self.valid = Metrics(
            step=self.counters.step,
            tokens=self.tokens,
            seconds=self.counters.seconds,
            valid_loss=score.loss,
            bits_per_byte=score.bits_per_byte,
        )
        self.metrics.add(self.valid)
        self.reporter.validation(self.valid)
        return True

    def _uncompiled(self) -> AbstractContextManager[object]:
        """Leave compiled blocks aside: validation has other sizes, and compiling takes long for each."""
        # Where nothing is compiled, torch's compiler is not even imported.
        return torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()

    def _save(self) -> None:
        from rookery.train.plotting import plot_loss

        state = TrainingState(
            counters=self.counters,
            model_config=self.model.config.to_dict(),
            tokenizer=self.tokenizer.to_spec(),
            fingerprint=self.fingerprint,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
        )
        self.folder.save(self.model, self.tokenizer, state)
        plot_loss(self.metrics.rows, self.folder.plot)
        self.saved_step = self.counters.step
        self.reporter.saved(self.folder.path, self.counters.step)

    def _rows_so_far(self) -> list[Metrics]:
        counters = self.counters

        def known(row: Metrics) -> bool:
            last = counters.validated_step if row.loss is None else counters.step
            return row.step <= last

        try:
            return [row for row in read_metrics(self.folder.metrics) if known(row)]
        except FileNotFoundError:
            return []

    def _facts(self) -> RunFacts:
        return RunFacts(
            config=self.config,
            model=self.model.config,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            tokenizer=self.tokenizer.kind,
            training_tokens=len(self.order.stream.tokens),
            validation_tokens=len(self.validation.tokens),
            device=str(self.device),
            run=self.folder.path,
            step=self.counters.step,
        )

    def _diverged(self, name: str, value: float) -> TrainingError:
        last = (
            f"the checkpoint of step {self.saved_step} in {self.folder.path} is as it was"
            if self.saved_step
            else "there was no checkpoint yet"
        )
        return TrainingError(
            f"step {self.counters.step + 1}: the {name} is {value}; {last}. Try a smaller --learning-rate, "
            f"or more --warmup-steps"
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _device(config: TrainConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch finds no GPU here; leave it out to train on the CPU")
    return torch.device(config.device)
