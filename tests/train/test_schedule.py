from __future__ import annotations

import math

import pytest

from rookery.errors import ConfigError
from rookery.train import TrainConfig
from rookery.train.schedule import Budget, learning_rate


def config(**options):
    return TrainConfig(**({"data": ("x",), "tokens": 1_000_000} | options))


def test_the_cosine_goes_from_the_peak_to_the_end():
    run = config(learning_rate=6e-4, final_learning_rate=6e-5, warmup_steps=0)
    rates = [learning_rate(run, step=100, spent=p) for p in (0, 0.25, 0.5, 1, 1.2)]
    quarter = 6e-4 * ((0.5 + 0.05) + (0.5 - 0.05) * math.sqrt(0.5))
    assert rates == pytest.approx([6e-4, quarter, 3.3e-4, 6e-5, 6e-5], rel=1e-12)


def test_the_first_ten_steps_warm_up_from_a_hundredth():
    run = config(learning_rate=1.0, final_learning_rate=1.0)
    rates = [learning_rate(run, step=s, spent=0.1) for s in (0, 1, 5, 9, 10, 11)]
    assert rates == pytest.approx([0.01, 0.109, 0.505, 0.901, 1, 1])


def test_the_end_is_a_tenth_of_the_peak_unless_said():
    assert config(learning_rate=2e-3).last_learning_rate == pytest.approx(2e-4)
    assert config(learning_rate=2e-3, final_learning_rate=0.0).last_learning_rate == 0


def test_a_token_budget_is_whole_steps():
    run = config(tokens=1001, context=10, batch=5)
    assert run.total_steps == 21
    budget = Budget(run)
    assert budget.spent(step=0, seconds=1e9) == 0
    assert budget.spent(step=20, seconds=0) < 1
    assert budget.spent(step=21, seconds=0) == budget.spent(step=30, seconds=0) == 1
    assert budget.seconds_left(step=0, seconds=0.0) is None
    assert budget.seconds_left(step=7, seconds=10.0) == pytest.approx(20)


def test_a_minute_budget_follows_the_clock():
    budget = Budget(config(tokens=None, minutes=2.0))
    assert budget.spent(step=10**9, seconds=30) == 0.25
    assert budget.seconds_left(step=1, seconds=30.0) == 90
    assert budget.spent(step=1, seconds=121) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": ()}, "no data"),
        ({"minutes": 1.0}, "one budget"),
        ({"tokens": None}, "one budget"),
        ({"tokens": 0}, "tokens must be positive"),
        ({"batch": 6, "accumulate": 4}, "6 rows cannot be split into 4"),
        ({"context": 0}, "context must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"final_learning_rate": 1.0}, "final_learning_rate must be between"),
        ({"valid_fraction": 1.0}, "valid_fraction must be between"),
        ({"beta2": 1.0}, "beta2"),
        ({"valid_every": -1}, "valid_every must not be negative"),
        ({"version": "8"}, "version '8' is unknown"),
        ({"device": "tpu"}, "device must be one of"),
        ({"init": "m", "layers": 3, "ranks": {"decay_rank": 4}}, "leave out layers, ranks"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        config(**options)


def test_model_sizes_and_presets():
    assert config().model_config(256).width == 128
    model = config(preset="0.1B", layers=3, ranks={"decay_rank": 16}).model_config(100)
    assert (model.num_layers, model.width, model.decay_rank, model.vocab_size) == (3, 768, 16, 100)
    assert config(version="4", preset="0.4B").model_config(50277).num_layers == 24
    with pytest.raises(ConfigError, match="no preset"):
        config(preset="9B").model_config(256)
    with pytest.raises(ConfigError, match="no mix_rank"):
        config(ranks={"mix_rank": 8}).model_config(256)


def test_a_configuration_survives_json():
    import json

    run = config(data=("a", "b"), ranks={"decay_rank": 3}, suffix=(".py",), minutes=None)
    assert TrainConfig.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    with pytest.raises(ConfigError, match="not a training configuration"):
        TrainConfig.from_dict({"data": ["x"], "tokens": 1, "speed": 9})
