"""What benchmarks/gguf_files.py says of two engines' logits."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gguf_files import BF16, differences, is_apart


def test_equal_logits_differ_in_nothing() -> None:
    ours = [np.random.default_rng(i).standard_normal((5, 40)).astype(np.float32) for i in range(2)]
    row = differences(zip(ours, ours, strict=True))
    assert row["largest difference"] == row["KL divergence"] == row["best token another"] == 0
    assert row["positions"] == 10 and row["first divergence"] is None


def test_another_best_token_is_counted_and_the_first_is_told() -> None:
    ours = np.zeros((3, 4), np.float32)
    ours[:, 1], ours[:, 2] = 5.0, 4.5
    theirs = ours.copy()
    theirs[1, 2], theirs[2, 3] = 5.1, 0.2
    row = differences([(ours, theirs)])
    assert row["best token another"] == 1
    assert row["first divergence"] == {"prompt": 0, "position": 1, "margin": 0.5}
    assert row["largest difference"] == pytest.approx(0.6) and row["largest margin of these"] == 0.5


def test_divergence_is_that_of_the_probabilities() -> None:
    ours, theirs = np.log(np.array([[0.5, 0.5]])), np.log(np.array([[0.25, 0.75]])) + 3
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    row = differences([(ours, theirs)])
    assert row["KL divergence"] == pytest.approx(expected, rel=1e-2)
    assert is_apart(row, BF16) and not is_apart(row, 1.0)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_fail(odd: float) -> None:
    ours = np.zeros((2, 4), np.float32)
    with np.errstate(invalid="ignore"):
        row = differences([(ours, np.full_like(ours, odd))])
    assert is_apart(row, 1.0)
