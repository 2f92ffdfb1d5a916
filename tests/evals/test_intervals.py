"""Means with their intervals, of few values as well."""

from __future__ import annotations

import numpy as np
import pytest

from minicpm4.evals.intervals import mean_with_interval, student

PERCENTILES = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 5: 2.57058, 8: 2.30600, 15: 2.13145}
PERCENTILES |= {30: 2.04227, 120: 1.97993, 100_000: 1.95999}


@pytest.mark.parametrize("freedom", PERCENTILES)
def test_percentiles_are_student_s(freedom: int) -> None:
    assert student(freedom) == pytest.approx(PERCENTILES[freedom], abs=3e-4)


@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_intervals_of_few_values_hold_the_mean_as_often_as_they_say(count: int) -> None:
    drawn = np.random.default_rng(count).normal(3.0, 0.5, (4000, count))
    found = [mean_with_interval(values) for values in drawn.tolist()]
    held = sum(half is not None and abs(mean - 3.0) <= half for mean, half in found)
    assert 0.937 <= held / 4000 <= 0.963  # four standard errors


def test_of_values_that_are_alike_no_interval_is_told() -> None:
    assert mean_with_interval([1.0]) == (1.0, None) == mean_with_interval([1.0] * 60)
    mean, half = mean_with_interval([0.0, 1.0], [1.0, 3.0])
    assert mean == 0.75 and half == pytest.approx(12.7062 * np.sqrt((0.75**2 + 0.75**2) * 2) / 4)
