"""What is accepted and taken back leaves no trace; where nothing changes, nothing is copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicpm4.engine.params import SamplingParams
from minicpm4.engine.processors import Processor, adjusted, make_processors

VOCAB = 12
ALL: dict[str, Any] = {
    "logit_bias": {1: 2.0, 3: float("-inf")},
    "min_tokens": 4,
    "repetition_penalty": 1.3,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.25,
}
LOGITS = np.random.default_rng(0).standard_normal(VOCAB).astype(np.float32)
tokens = st.lists(st.integers(0, VOCAB - 1), max_size=8)


def make(**options: Any) -> list[Processor]:
    return make_processors(SamplingParams(**options), (1, 2, 2), (0, 5))


def accept(processors: list[Processor], accepted: list[int]) -> None:
    for processor in processors:
        for token in accepted:
            processor.accept(token)


def adjustments(processors: list[Processor]) -> list[bytes | None]:
    """What each processor alone makes of the logits: bytes, so that not even a rounding may differ."""
    return [adjusted(LOGITS, [one]).tobytes() if one.active else None for one in processors]


@given(tokens, tokens, tokens)
def test_what_is_undone_was_never_accepted(kept: list[int], undone: list[int], later: list[int]) -> None:
    straight, returned = make(**ALL), make(**ALL)
    accept(straight, kept)
    accept(returned, kept + undone)
    for processor in returned:
        processor.undo(len(undone))
    assert adjustments(returned) == adjustments(straight)
    accept(straight, later)
    accept(returned, later)
    assert adjustments(returned) == adjustments(straight)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("penalty", [0.01, 100.0])
@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_the_largest_logits_and_settings_make_no_infinity(penalty: float, bias: float) -> None:
    ends = np.finfo(np.float32).max * np.array([1, -1] * (VOCAB // 2), np.float32)
    changed = make(repetition_penalty=penalty, logit_bias={1: bias, 2: bias}, frequency_penalty=-2)
    accept(changed, [1, 2, 3, 4])
    after = adjusted(ends, changed)
    assert not np.isnan(after).any() and after.max() < np.inf


def test_without_settings_there_is_no_processor() -> None:
    assert make() == []
    assert adjusted(LOGITS, []) is LOGITS


@pytest.mark.parametrize("options", [{"presence_penalty": 1.0}, {"frequency_penalty": 1.0}])
def test_what_changes_nothing_copies_nothing(options: dict[str, Any]) -> None:
    processors = make(**options)
    assert adjusted(LOGITS, processors) is LOGITS
    accept(processors, [4])
    assert adjusted(LOGITS, processors) is not LOGITS


def test_a_ban_ends_and_comes_back_when_tokens_are_undone() -> None:
    (ban,) = make(min_tokens=2)
    accept([ban], [7, 7])
    assert not ban.active
    ban.undo(1)
    assert ban.active
