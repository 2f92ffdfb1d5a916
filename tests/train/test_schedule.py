"""Learning rates: tables of whole schedules, chained stages, what is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from minicpm4.errors import ConfigError
from minicpm4.train.schedule import Chain, Wsd

# (settings, the rate of every step)
TABLES: list[tuple[dict[str, Any], list[float]]] = [
    ({"steps": 3}, [8, 8, 8]),
    ({"steps": 5, "warmup": 3}, [2, 4, 6, 8, 8]),
    ({"steps": 5, "warmup": 3, "start": 4}, [5, 6, 7, 8, 8]),
    ({"steps": 5, "decay": "linear", "decay_steps": 3}, [8, 8, 6, 4, 2]),
    ({"steps": 4, "decay": "linear", "decay_steps": 3, "final": 0.5}, [8, 7, 6, 5]),
    ({"steps": 3, "decay": "cosine", "decay_steps": 2}, [8, 6, 2]),
    ({"steps": 4, "decay": "cosine", "decay_steps": 3, "final": 0.1}, [8, 6.945584, 4.4, 1.854416]),
    ({"steps": 3, "decay": "exponential", "decay_steps": 2, "final": 1 / 8}, [8, 4, 2]),
    ({"steps": 4, "decay": "sqrt", "decay_steps": 3}, [8, 4, 2.343146, 1.071797]),
    ({"steps": 2, "warmup": 1, "decay": "linear", "decay_steps": 1}, [4, 4]),
]


@pytest.mark.parametrize(("settings", "rates"), TABLES)
def test_every_step_of_a_stage(settings: dict[str, Any], rates: list[float]) -> None:
    stage = Wsd(rate=8.0, **settings)
    assert [stage.at(step) for step in range(stage.steps)] == pytest.approx(rates, abs=1e-6)
    assert Chain([stage]).at(stage.steps + 10) == pytest.approx(stage.at(stage.steps))
    assert stage.at(stage.steps) == pytest.approx(stage.end)


@pytest.mark.parametrize("decay", ["linear", "cosine", "exponential", "sqrt"])
def test_a_decay_falls_steadily_to_its_end(decay: str) -> None:
    stage = Wsd(rate=0.01, steps=1000, warmup=10, decay=decay, decay_steps=500, final=0.1)
    rates = [stage.at(step) for step in range(1000)]
    assert rates[10:500] == [0.01] * 490
    assert all(a > b for a, b in pairwise(rates[499:]))
    assert rates[-1] == pytest.approx(0.001, rel=0.02) and stage.end == pytest.approx(0.001)


def test_the_next_stage_warms_up_from_where_the_last_ended() -> None:
    first = Wsd(rate=4.0, steps=2, decay="linear", decay_steps=1, final=0.5)
    chain = Chain([first, Wsd(rate=8.0, steps=3, warmup=2), Wsd(rate=1.0, steps=2)])
    assert chain.steps == 7
    # 4, 3 | up from 2: 4, 6, 8 | 1, 1
    assert [chain.at(step) for step in range(7)] == pytest.approx([4, 3, 4, 6, 8, 1, 1])


def test_a_second_warm_up_can_start_at_zero() -> None:
    chain = Chain([Wsd(rate=4.0, steps=2), Wsd(rate=4.0, steps=4, warmup=3, start=0.0)])
    assert [chain.at(step) for step in range(6)] == pytest.approx([4, 4, 1, 2, 3, 4])


def test_the_rate_is_a_function_of_the_step_alone() -> None:
    chain = Chain([Wsd(rate=0.3, steps=7, warmup=2), Wsd(rate=0.1, steps=9, decay="sqrt", decay_steps=9)])
    forward = [chain.at(step) for step in range(16)]
    assert [chain.at(step) for step in reversed(range(16))] == forward[::-1]
    assert all(math.isfinite(rate) and rate > 0 for rate in forward)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.0, "steps": 3}, "learning rate 0.0 is not positive"),
        ({"rate": math.nan, "steps": 3}, "learning rate nan is not positive"),
        ({"steps": 3, "warmup": 2, "decay": "linear", "decay_steps": 2}, "warm-up of 2 and decay of 2 steps"),
        ({"steps": 3, "warmup": -1}, "warm-up of -1"),
        ({"steps": 3, "decay": "cosin", "decay_steps": 2}, "did you mean 'cosine'"),
        ({"steps": 3, "decay": "linear"}, "0 steps do not fit decay kind 'linear'"),
        ({"steps": 3, "decay_steps": 2}, "2 steps do not fit decay kind 'none'"),
        ({"steps": 3, "decay": "linear", "decay_steps": 2, "final": 1.5}, "final = 1.5 is not from 0 to 1"),
        ({"steps": 3, "decay": "exponential", "decay_steps": 2}, "never reaches final = 0"),
        ({"steps": 3, "start": -1.0}, "start = -1.0 is negative"),
    ],
)
def test_what_makes_no_schedule_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Wsd(**({"rate": 1.0} | settings))


def test_no_stages_and_no_step_are_refused() -> None:
    with pytest.raises(ConfigError, match="no stages"):
        Chain([])
    with pytest.raises(ConfigError, match="step -1 is negative"):
        Chain([Wsd(rate=1.0, steps=1)]).at(-1)
