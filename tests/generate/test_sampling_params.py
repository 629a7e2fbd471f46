"""Sampling parameters: what is accepted, and what a refusal says."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from rookery.errors import ConfigError
from rookery.generate.sampling import SamplingParams


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be a number, 0 or more, not -0.1"),
        ({"temperature": math.nan}, "temperature must be a number, 0 or more, not nan"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": "hot"}, "temperature must be a number, 0 or more, not 'hot'"),
        ({"temperature": None}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_k": -1}, "top_k must be an integer, 0 or more, not -1"),
        ({"top_k": 2.0}, "top_k must be an integer"),
        ({"top_p": 1.01}, "top_p must be a number from 0 to 1, not 1.01"),
        ({"min_p": -0.01}, "min_p must be a number from 0 to 1"),
        ({"temperature_last": 1}, "temperature_last must be True or False"),
        ({"presence_penalty": math.inf}, "presence_penalty must be a number from -1000 to 1000, not inf"),
        ({"frequency_penalty": math.nan}, "frequency_penalty must be a number from -1000 to 1000, not nan"),
        ({"penalty_decay": 1.5}, "penalty_decay must be a number from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number from 0.001 to 1000"),
        ({"banned_tokens": (1, -1)}, "banned_tokens must hold ids, each 0 or more, not -1"),
        ({"banned_tokens": 3}, "banned_tokens must be a tuple of ids"),
        ({"banned_tokens": ("a",)}, "banned_tokens must hold ids"),
        ({"seed": -1}, r"seed must be an integer from 0 to 2\*\*64 - 1, not -1"),
        ({"seed": 2**64}, "seed"),
        ({"stop": "\n\n"}, "stop must be a tuple of strings"),
        ({"stop": ("a", "")}, "stop must hold strings that are not empty, not ''"),
        ({"stop": (3,)}, "stop must hold strings"),
        ({"max_tokens": 0}, "max_tokens must be an integer, 1 or more, not 0"),
    ],
)
def test_a_parameter_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingParams(**options)


def test_parameters_are_plain_and_frozen() -> None:
    params = SamplingParams(
        temperature=np.float32(0.5),
        top_k=np.int64(3),
        banned_tokens=[np.int32(1), 2],
        stop=["a", "b"],
        seed=2**64 - 1,
    )
    assert params.banned_tokens == (1, 2)
    assert params.stop == ("a", "b")
    assert (type(params.temperature), type(params.top_k), type(params.banned_tokens[0])) == (float, int, int)
    with pytest.raises(FrozenInstanceError):
        params.top_k = 4
    with pytest.raises(TypeError):
        SamplingParams(0.5)


def test_an_unknown_parameter_is_named() -> None:
    assert SamplingParams.from_dict({"top_k": 3}) == SamplingParams(top_k=3)
    with pytest.raises(ConfigError, match="no sampling parameter 'topk'; there are temperature, top_k"):
        SamplingParams.from_dict({"topk": 3})
