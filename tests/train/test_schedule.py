"""Learning rates: tables of whole schedules, chained stages, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from minicpm4.errors import ConfigError
from minicpm4.train.recipe import Recipe, Stage
from minicpm4.train.schedule import rate_at
from minicpm4.train.settings import Decay
from tests.train.runs import recipe

NONE = Decay()


def part(rate: float, steps: int, warmup: int = 0, start: float = -1.0, decay: Decay = NONE) -> Stage:
    """A stage of which only its rates matter; ``start``: ``warmup_from``."""
    return Stage(
        name="s",
        steps=steps,
        batch_tokens=2,
        context=2,
        rate=rate,
        data={"text": 1.0},
        warmup=warmup,
        warmup_from=start,
        decay=decay,
    )


def rates_of(*stages: Stage) -> list[float]:
    """The rate of every step of a recipe of ``stages``."""
    named = tuple(replace(one, name=str(number)) for number, one in enumerate(stages))
    made: Recipe = replace(recipe(), stages=named)
    return [rate_at(made, step) for step in range(made.steps)]


def fall(kind: str, steps: int, final: float = 0.0) -> Decay:
    return Decay(kind=kind, steps=steps, final=final)


# (steps, warm-up, what it begins at, decay, the rate of every step)
TABLES: list[tuple[int, int, float, Decay, list[float]]] = [
    (3, 0, -1, NONE, [8, 8, 8]),
    (5, 3, -1, NONE, [2, 4, 6, 8, 8]),
    (5, 3, 0.5, NONE, [5, 6, 7, 8, 8]),
    (5, 0, -1, fall("linear", 3), [8, 8, 6, 4, 2]),
    (4, 0, -1, fall("linear", 3, 0.5), [8, 7, 6, 5]),
    (3, 0, -1, fall("cosine", 2), [8, 6, 2]),
    (4, 0, -1, fall("cosine", 3, 0.1), [8, 6.945584, 4.4, 1.854416]),
    (3, 0, -1, fall("exponential", 2, 1 / 8), [8, 4, 2]),
    (4, 0, -1, fall("sqrt", 3), [8, 4, 2.343146, 1.071797]),
    (2, 1, -1, fall("linear", 1), [4, 4]),
]


@pytest.mark.parametrize(("steps", "warmup", "start", "decay", "rates"), TABLES)
def test_every_step_of_a_stage(
    steps: int, warmup: int, start: float, decay: Decay, rates: list[float]
) -> None:
    found = rates_of(part(8.0, steps, warmup, start, decay))
    assert found == pytest.approx(rates, abs=1e-6)


@pytest.mark.parametrize("kind", ["linear", "cosine", "exponential", "sqrt"])
def test_a_decay_falls_steadily_to_its_end(kind: str) -> None:
    rates = rates_of(part(0.01, 1000, 10, decay=fall(kind, 500, 0.1)))
    assert rates[10:500] == [0.01] * 490
    assert all(a > b for a, b in pairwise(rates[499:]))
    assert rates[-1] == pytest.approx(0.001, rel=0.02)


def test_the_next_stage_warms_up_from_where_the_last_ended() -> None:
    found = rates_of(part(4.0, 2, decay=fall("linear", 1, 0.5)), part(8.0, 3, 2), part(1.0, 2))
    # 4, 3 | up from 2: 4, 6, 8 | 1, 1
    assert found == pytest.approx([4, 3, 4, 6, 8, 1, 1])


def test_a_second_warm_up_can_start_at_zero() -> None:
    assert rates_of(part(4.0, 2), part(4.0, 4, 3, 0.0)) == pytest.approx([4, 4, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("rate", "warmup", "decay", "message"),
    [
        (0.0, 0, ("none", 0), "rate = 0.0 is not positive"),
        (1e308, 0, ("none", 0), r"rate = 1e\+308 is above 100"),
        (math.nan, 0, ("none", 0), "rate = nan is not positive"),
        (1.0, 2, ("linear", 2), "warmup = 2 and decay of 2 steps exceed its 3 steps"),
        (1.0, -1, ("none", 0), "warmup = -1"),
        (1.0, 0, ("cosin", 2), "did you mean 'cosine'"),
        (1.0, 0, ("linear", 0), "decay.steps = 0 does not fit decay kind 'linear'"),
        (1.0, 0, ("none", 2), "decay.steps = 2 does not fit decay kind 'none'"),
        (1.0, 0, ("linear", 2, 1.5), "final = 1.5 is not from 0 to 1"),
        (1.0, 0, ("exponential", 2), "never reaches decay.final = 0"),
    ],
)
def test_what_makes_no_schedule_is_refused(rate: float, warmup: int, decay: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        part(rate, 3, warmup, decay=fall(*decay))
