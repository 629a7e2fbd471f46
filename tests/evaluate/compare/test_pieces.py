"""The pieces of a comparison, each by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rookery.errors import ConfigError, DataError, TrainingError
from rookery.evaluate.compare import cells
from rookery.evaluate.compare.cells import Cell, CompareFolder, cells_of
from rookery.evaluate.compare.config import CompareConfig, DataSet, data_set
from rookery.evaluate.compare.costs import measure_generation, measure_speed, measure_training
from rookery.evaluate.compare.fit import fit_exponent
from rookery.evaluate.compare.models import check_mixers, make_model
from rookery.evaluate.compare.plan import make_plan, task_test_tokens
from rookery.evaluate.compare.task_cells import score_task, task_config, task_rows
from rookery.evaluate.compare.text import (
    Texts,
    context_windows,
    losses_at,
    losses_by_position,
    position_buckets,
    train_config,
    validation_steps,
)
from rookery.evaluate.compare.training import Interrupted, fit_model
from rookery.evaluate.tasks import TASKS, asked
from rookery.rivals import MIXERS
from rookery.tokenizers import named
from rookery.train.data import TokenStream, TrainingOrder


def test_a_configuration_survives_json(tiny):
    config = tiny(minutes=3, tokens=None)
    assert CompareConfig.from_dict(config.to_dict()) == config
    assert config.differences(config) == []
    assert config.differences(replace(config, seeds=2, width=64)) == ["width", "seeds"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixers": ()}, "at least one mixer"),
        ({"mixers": ("rwkv7", "rwkv7")}, "mixer 'rwkv7' is named twice"),
        ({"minutes": 3.0}, "one budget"),
        ({"tokens": None}, "one budget"),
        ({"tokens": 0}, "tokens must be positive"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"contexts": (48, 64)}, "48 does not"),
        ({"contexts": (64, 16)}, "contexts must be growing"),
        ({"training_lengths": ()}, "training_lengths must be growing"),
        ({"tasks": ("parity", "chess")}, "no task 'chess'; there are mqar"),
        ({"tokenizer": "world"}, "bytes or chars"),
        ({"valid_fraction": 1.0}, "valid_fraction"),
        ({"data": (), "tasks": (), "costs": False}, "nothing to measure"),
        (
            {"data": (DataSet(name="a", path="a"), DataSet(name="a", path="b/a"))},
            "data set 'a' is named twice",
        ),
    ],
)
def test_what_does_not_fit_together_is_said(tiny, options, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**options)


def test_unknown_mixers_are_answered_with_the_list():
    with pytest.raises(ConfigError, match=r"no mixer 'mamba'; there are rwkv4, .*attention"):
        check_mixers(["rwkv7", "mamba"])


def test_parameters_that_no_sizes_give(tiny):
    with pytest.raises(ConfigError, match="parameters"):
        make_model(tiny(parameters=3000), "rwkv7", 256, seed=0)


@pytest.mark.parametrize("task", [False, True])
def test_all_mixers_are_built_with_equal_parameters(tiny, task):
    config = tiny(parameters=150_000, width=64, task_parameters=100_000, task_width=64)
    for mixer in MIXERS:
        model = make_model(config, mixer, 256 if not task else 60, seed=0, task=task)
        found = sum(parameter.numel() for parameter in model.parameters())
        assert found == pytest.approx(100_000 if task else 150_000, rel=0.02)


def test_the_standard_library_is_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = data_set("stdlib")
    assert (found.name, found.suffix) == ("stdlib", (".py",))
    assert "site-packages" in found.exclude
    (tmp_path / "stdlib").write_text("a file of that name")
    assert data_set("stdlib").path == str(tmp_path / "stdlib")


def test_cells_have_names_of_their_own(tiny):
    config = tiny(seeds=2, task_seeds=2)
    every = list(cells_of(config))
    assert len({cell.id for cell in every}) == len(every) == 2 + 4 + 4 + 4 + 2
    assert [cell.kind for cell in every] == sorted((c.kind for c in every), key=list(cells.STAGES).index)


def test_results_are_kept_and_broken_ones_are_said(tmp_path):
    folder, cell = CompareFolder(tmp_path), Cell(kind="text", mixer="rwkv7", subject="book")
    assert folder.result(cell) is None
    folder.write_result(cell, {"status": "done", "loss": 1.5})
    result = folder.result(cell)
    assert result is not None
    assert (result["loss"], result["cell"]["mixer"]) == (1.5, "rwkv7")
    folder.result_path(cell).write_text("{")
    with pytest.raises(DataError, match=r"rwkv7-0\.json: cannot be read"):
        folder.result(cell)


def test_exponents_are_those_of_powers_and_of_the_longest_lengths():
    lengths = [64, 256, 1024, 2048, 4096]
    fit = fit_exponent(lengths, [3e-6 * n**1.5 for n in lengths])
    assert fit is not None
    assert fit.value == pytest.approx(1.5)
    assert (fit.first, fit.last, fit.points) == (1024, 4096, 3)
    # A constant that hides the growth at short lengths counts for little at long ones.
    far = [2**10, 2**16, 2**17, 2**18]
    fit = fit_exponent(far, [0.001 + 1e-9 * n**2 for n in far])
    assert fit is not None
    assert fit.value == pytest.approx(2, abs=0.01)
    constant = fit_exponent(lengths, [5.0] * 5)
    assert constant is not None
    assert constant.value == pytest.approx(0, abs=1e-9)
    assert fit_exponent([64, 1024], [1.0, 2.0]) is None


def speeds(config: CompareConfig, **by_mixer: float) -> dict[str, dict[str, float]]:
    return {mixer: dict.fromkeys(("text", *config.tasks), seconds) for mixer, seconds in by_mixer.items()}


def test_minutes_become_equal_tokens_that_fill_them(tiny):
    config = tiny(minutes=60, tokens=None, seeds=2, tasks=("parity", "mqar"))
    plan = make_plan(config, speeds(config, rwkv7=1e-4, attention=3e-4), threads=2)
    assert plan.text_tokens % (config.batch * config.context) == 0
    assert all(tokens % config.task_batch_tokens == 0 for tokens in plan.task_tokens.values())
    # Recall has twice the weight of parity.
    assert plan.task_tokens["mqar"] > 1.8 * plan.task_tokens["parity"]
    work = {name: seconds for name, seconds in plan.expected.items() if name.startswith(("text", "task"))}
    assert sum(work.values()) == pytest.approx(0.8 * 60 * 60, rel=0.15)
    slower = make_plan(config, speeds(config, rwkv7=2e-4, attention=6e-4), threads=2)
    assert slower.text_tokens == pytest.approx(plan.text_tokens / 2, rel=0.01)
    alone = make_plan(
        replace(config, tasks=(), costs=False), speeds(config, rwkv7=1e-4, attention=3e-4), threads=2
    )
    assert alone.text_tokens == pytest.approx(2 * plan.text_tokens, rel=0.01)


def test_too_few_minutes_are_said(tiny):
    config = tiny(minutes=0.01, tokens=None)
    with pytest.raises(ConfigError, match=r"0\.01 minutes are too few.*text would get 0 steps of 64"):
        make_plan(config, speeds(config, rwkv7=1e-2, attention=1e-2), threads=1)


def test_a_budget_in_tokens_is_that_of_every_model(tiny):
    config = tiny(task_tokens=999)
    plan = make_plan(config, speeds(config, rwkv7=1e-4, attention=1e-4), threads=1)
    assert (plan.text_tokens, plan.task_tokens) == (512, {"parity": 999})
    assert task_test_tokens(TASKS["parity"]) == 128 * sum(TASKS["parity"].test_sizes)
    assert task_test_tokens(TASKS["passkey"]) == 20 * 5 * sum(TASKS["passkey"].test_sizes)


def test_training_goes_on_as_if_it_had_not_been_stopped(tiny, tmp_path):
    config, task = tiny(), TASKS["parity"]
    recipe = task_config(config, tokens=10 * 128, seed=0, name="parity")

    def learn(path, **hooks):
        model = make_model(config, "rwkv7", 2, seed=0, task=True)

        def rows(step):
            return task_rows(task, step, seed=0, tokens=128)

        return model, fit_model(model, recipe, rows, checkpoint=path, **hooks)

    unbroken, history = learn(tmp_path / "a.pt")
    steps: list[str] = []
    with pytest.raises(Interrupted):
        learn(
            tmp_path / "b.pt", progress=lambda part, text: steps.append(text), stopped=lambda: len(steps) == 4
        )
    assert len(steps) == 4
    resumed, second = learn(tmp_path / "b.pt")
    assert second.losses == history.losses
    assert len(second.step_seconds) == 10
    for one, other in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    # A checkpoint that a crash cut short is as good as none.
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:1000])
    assert learn(tmp_path / "b.pt")[1].losses == history.losses


def test_divergence_is_an_error(tiny, tmp_path):
    config = tiny()
    model = make_model(config, "rwkv7", 2, seed=0, task=True)
    with torch.no_grad():
        model.get_parameter("head.weight").fill_(float("nan"))
    recipe = task_config(config, tokens=128, seed=0, name="parity")
    rows = task_rows(TASKS["parity"], 0, seed=0, tokens=128)
    with pytest.raises(TrainingError, match="step 1: the loss is nan"):
        fit_model(model, recipe, lambda step: rows, checkpoint=tmp_path / "c.pt")


def stream(sizes: list[int]) -> TokenStream:
    tokens = np.random.default_rng(0).integers(0, 50, sum(sizes)).astype(np.uint8)
    starts = np.zeros(len(tokens), dtype=bool)
    starts[np.cumsum([0, *sizes[:-1]])] = True
    return TokenStream(tokens, starts, separated=True)


def test_windows_of_contexts_lie_within_documents():
    texts = stream([100, 30, 65, 200])
    windows = context_windows(texts, length=32, limit=10_000, name="x")
    assert windows.shape == (3 + 2 + 6, 33)
    whole = [bytes(document.tolist()) for document in texts.documents()]
    assert all(any(bytes(window.tolist()) in text for text in whole) for window in windows)
    assert len(context_windows(texts, length=32, limit=96, name="x")) == 3
    with pytest.raises(
        DataError, match=r"x: a context of 256 needs a held-out document of 257 tokens.*has 200"
    ):
        context_windows(texts, length=256, limit=96, name="x")


@pytest.mark.parametrize("mixer", ["rwkv7", "attention"])
def test_losses_at_a_context_are_those_of_pieces_read_by_themselves(tiny, mixer, monkeypatch):
    from rookery.evaluate.compare import text

    # Read in spans of 8 with the state carried, and in several calls.
    monkeypatch.setattr(text, "_SPAN", 8)
    monkeypatch.setattr(text, "_CALL", 16)
    model = make_model(tiny(), mixer, 256, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    windows = np.random.default_rng(1).integers(0, 256, (3, 65))
    for context in (16, 64):
        losses = losses_at(model, windows, context)
        assert losses.shape == (3, 64)
        for row in range(3):
            for first in range(0, 64, context):
                piece = torch.from_numpy(windows[row, first : first + context + 1])
                with torch.no_grad():
                    logits, _ = model(piece[None, :-1])
                expected = F.cross_entropy(logits[0], piece[1:], reduction="none").numpy()
                np.testing.assert_allclose(losses[row, first : first + context], expected, atol=2e-5)


@pytest.mark.parametrize("contexts", [(4,), (5,), (64,), (50, 100), (64, 256, 1024, 4096), (1, 3)])
def test_position_buckets_cover_every_position_once(contexts):
    buckets = position_buckets(contexts)
    assert [p for first, last in buckets for p in range(first, last)] == list(range(contexts[-1]))
    assert not any(first < context < last for first, last in buckets for context in contexts)


def test_losses_by_position_are_means_over_the_shortest_context_that_has_it():
    # Loss = position within the piece, and a hundred more in the longer context.
    short = np.tile(np.arange(8.0), (3, 4))
    long = 100 + np.tile(np.arange(32.0), (3, 1))
    found = {(p["first"], p["last"]): p["loss"] for p in losses_by_position({8: short, 32: long})}
    assert found[0, 4] == 1.5
    assert found[6, 8] == 6.5
    assert found[8, 11] == 109
    assert losses_by_position({}) == []


def test_validations_end_with_the_last_step():
    for steps in (1, 7, 400):
        assert max(validation_steps(steps)) == steps
        assert min(validation_steps(steps)) >= 1


def test_every_mixer_sees_the_same_rows(tiny):
    config, texts = tiny(), stream([3000, 2000])
    orders = [TrainingOrder(texts, context=32, batch=2, seed=1, name="x") for _ in range(2)]
    for step in (0, 5):
        np.testing.assert_array_equal(orders[0].rows(step).inputs, orders[1].rows(step).inputs)
    for step in range(3):
        one, two = (task_rows(TASKS["copy"], step, seed=4, tokens=256) for _ in range(2))
        np.testing.assert_array_equal(one.inputs, two.inputs)
        assert 200 <= one.inputs.size <= 256
    recipe = train_config(config, tokens=6400, seed=3, name="x")
    assert (recipe.total_steps, recipe.warmup_steps, recipe.seed) == (100, 10, 3)


def test_tokens_are_kept_as_they_are(tmp_path):
    training, validation = stream([40, 20]), TokenStream(np.arange(9, dtype=np.uint8), None, separated=False)
    Texts.save(tmp_path / "x.npz", training, validation, named("bytes").to_spec())
    texts = Texts(tmp_path / "x.npz")
    assert texts.training.fingerprint() == training.fingerprint()
    assert texts.validation.fingerprint() == validation.fingerprint()
    assert texts.validation.starts is None
    assert (texts.training.separated, texts.validation.separated) == (True, False)
    assert texts.tokenizer.kind == "bytes"


class Knowing(torch.nn.Module):
    """Answers a task from its targets, but for every wrong-th row from the second answer on."""

    def __init__(self, task, wrong: int):
        super().__init__()
        self.task, self.wrong, self.seen = task, wrong, 0

    def forward(self, tokens):
        size = tokens.shape[1]
        logits = torch.zeros(*tokens.shape, self.task.vocab_size)
        for row in range(len(tokens)):
            index = self.seen + row
            example = self.task.example(2**31 - 1, index, size, None)
            assert torch.equal(tokens[row], torch.from_numpy(example.tokens))
            answers = torch.from_numpy(example.targets).clamp(min=0)
            if self.wrong and index % self.wrong == 0:
                answers[1:] = 1 - answers[1:]
            logits[row].scatter_(1, answers[:, None], 1.0)
        self.seen += len(tokens)
        return logits, None


def test_accuracies_count_what_they_say():
    task = replace(TASKS["parity"], test_examples=40)
    perfect = score_task(Knowing(task, 0), task, size=8, depth=None)
    assert (perfect["answers"], perfect["last"], perfect["whole"], perfect["examples"]) == (1, 1, 1, 40)
    # Of every fourth example seven of eight answers are wrong, the last one among them.
    partly = score_task(Knowing(task, 4), task, size=8, depth=None)
    assert partly["answers"] == pytest.approx(1 - 7 / 8 / 4)
    assert (partly["last"], partly["whole"]) == (0.75, 0.75)


class Guessing(torch.nn.Module):
    """Answers everything with one token."""

    def __init__(self, vocab_size: int, token: int):
        super().__init__()
        self.vocab_size, self.token = vocab_size, token

    def forward(self, tokens):
        return F.one_hot(torch.full_like(tokens, self.token), self.vocab_size).float(), None


def test_what_is_not_asked_does_not_count():
    task = replace(TASKS["mqar"], test_examples=30)
    wanted = [task.example(2**31 - 1, index, 4, None).targets for index in range(30)]
    token = int(np.bincount(np.concatenate([t[asked(t)] for t in wanted])).argmax())
    score = score_task(Guessing(task.vocab_size, token), task, size=4, depth=None)
    assert score["answers"] == pytest.approx(np.mean([(t[asked(t)] == token).mean() for t in wanted]))
    assert score["last"] == pytest.approx(np.mean([t[asked(t)][-1] == token for t in wanted]))
    assert score["answers"] > 0
    assert score["whole"] == 0


def test_costs_are_measured(tiny):
    config = tiny()
    training = measure_training(
        config, Cell(kind="training", mixer="rwkv7", length=32), limit=60, shorter=(16, 1e-3)
    )
    assert training["status"] == "done"
    assert training["tokens_per_second"] == pytest.approx(32 / training["seconds"])
    if training["peak_bytes"] is not None:
        assert 16 * training["parameters"] <= training["peak_bytes"] < 1 << 30
    for mixer, grows in (("rwkv7", False), ("attention", True)):
        result = measure_generation(config, Cell(kind="generation", mixer=mixer), limit=60)
        one, two = result["points"]
        assert (one["after"], two["after"]) == (16, 32)
        assert (two["state_bytes"] > one["state_bytes"]) == grows
    speed = measure_speed(config, Cell(kind="speed", mixer="rwkv7"), threads=1)["seconds_per_token"]
    assert speed.keys() == {"text", "parity"}
    assert all(seconds > 0 for seconds in speed.values())


def test_what_would_take_too_long_is_skipped_with_its_reason(tiny):
    cell = Cell(kind="training", mixer="rwkv7", length=64)
    result = measure_training(tiny(), cell, limit=1.0, shorter=(32, 10.0))
    assert result["status"] == "skipped"
    assert "may take 40 s, judged by 10 s at 32 tokens; the limit is 1 s" in result["reason"]
    result = measure_generation(tiny(), Cell(kind="generation", mixer="rwkv7"), limit=0.0)
    assert {point["status"] for point in result["points"]} == {"skipped"}
    assert "reading 16 tokens takes longer than the limit" in result["points"][0]["reason"]


def test_a_longest_context_is_a_reason_and_no_failure(tiny):
    """AFT's position biases end at 1024 tokens: one more token after them is one too many."""
    config = tiny(mixers=("aft",), width=16, parameters=200_000, generation_lengths=(512, 1024, 2048))
    one, two, three = measure_generation(config, Cell(kind="generation", mixer="aft"), limit=60)["points"]
    assert one["status"] == "done"
    assert (two["status"], three["status"]) == ("skipped", "skipped")
    assert "end at 1024" in two["reason"]
    assert "end at 1024" in three["reason"]
    long = measure_training(config, Cell(kind="training", mixer="aft", length=1025), limit=60, shorter=None)
    assert long["status"] == "skipped"
    assert "end at 1024" in long["reason"]
