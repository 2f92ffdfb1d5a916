"""Prompts beside running answers: small enough for these to go on, and the short ones first."""

from __future__ import annotations

from random import Random

import pytest

from minicpm4.engine.pace import LEAST, PROBE_EVERY, Pace
from minicpm4.engine.pages import PageAllocator
from minicpm4.engine.scheduler import Scheduler
from minicpm4.engine.sequence import Sequence

ALONE = 0.020  # seconds of a step that decodes


class Fixed(Pace):
    """Always the same room beside decoding."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._room = rows

    def room(self, decoding: int) -> int | None:
        return self._room if decoding else None


def run(pace: Pace, seconds_of_row: float, steps: int, decoding: int = 8) -> list[tuple[int, float]]:
    """Steps (tokens of prompts, seconds) of a machine on which the first row costs more than the next."""
    rng, found = Random(0), []
    for _ in range(steps):
        rows = pace.room(decoding)
        assert rows is not None
        seconds = (ALONE + rows * seconds_of_row + 0.002 * (rows > 0)) * rng.uniform(1, 1.1)
        pace.note(decoding, rows, seconds)
        found.append((rows, seconds))
    return found


@pytest.mark.parametrize("seconds_of_row", [0.00005, 0.0005, 0.002])
def test_steps_take_no_more_than_twice_as_long(seconds_of_row: float) -> None:
    found = run(Pace(), seconds_of_row, 400)
    assert found[0] == (0, pytest.approx(ALONE, rel=0.1)), "what decoding takes alone is measured first"
    later = [seconds for _, seconds in found[50:]]
    assert sorted(later)[int(len(later) * 0.99)] <= 2 * ALONE * 1.1
    rows = sum(rows for rows, _ in found[50:]) / len(later)
    assert rows >= 0.6 * (0.75 * ALONE - 0.002) / seconds_of_row, "and no less than what they may"


def test_however_slow_prompts_go_on() -> None:
    assert {rows for rows, _ in run(Pace(), 1.0, 30)[10:]} == {0, LEAST}


def test_what_decoding_takes_alone_is_measured_again_and_again() -> None:
    rows = [rows for rows, _ in run(Pace(), 0.0005, 3 * PROBE_EVERY)]
    assert 3 <= rows.count(0) <= 4


def test_nobody_decodes_nothing_is_held_back() -> None:
    pace = Pace()
    assert pace.room(0) is None
    pace.note(0, 512, 1.0)
    assert pace.room(0) is None


def prompts(rows: int, *lengths: int) -> Scheduler:
    """A scheduler with one sequence that decodes, and prompts of these lengths behind it."""
    scheduler = Scheduler(PageAllocator(100, 4), max_rows=64, max_sequences=5, pace=Fixed(rows))
    scheduler.add(Sequence(0, [1, 2, 3], limit=200))
    step(scheduler)
    for number, length in enumerate(lengths, 1):
        scheduler.add(Sequence(number, [length] * length, limit=200))
    return scheduler


def step(scheduler: Scheduler) -> dict[int, int]:
    """Rows of each request in the next step."""
    plan = scheduler.schedule()
    scheduler.commit(plan)
    for span in plan.spans:
        if not span.sequence.pending:
            span.sequence.tokens.append(7)
    return {span.sequence.request_id: span.count for span in plan.spans}


def test_a_short_prompt_overtakes_a_long_one_that_still_goes_on() -> None:
    scheduler = prompts(8, 100)
    assert step(scheduler) == {0: 1, 1: 8}
    scheduler.add(Sequence(2, [5] * 11, limit=100))
    assert step(scheduler) == {0: 1, 1: 2, 2: 6}
    assert step(scheduler) == {0: 1, 1: 3, 2: 5}, "what is left over is the oldest's"
    assert step(scheduler) == {0: 1, 1: 8, 2: 1}


def test_of_several_the_one_with_least_left_goes_first() -> None:
    scheduler = prompts(8, 100, 90, 12)
    assert step(scheduler) == {0: 1, 1: 2, 3: 6}
    assert step(scheduler) == {0: 1, 1: 2, 3: 6}
    assert step(scheduler) == {0: 1, 1: 2, 2: 6, 3: 1}


def test_a_text_that_is_read_goes_beside_answers_as_a_prompt_does() -> None:
    scheduler = prompts(8, 100)
    scheduler.add(Sequence(2, [5] * 30, limit=30, wanted="all"))
    assert step(scheduler) == {0: 1, 1: 2, 2: 6}
    plan = scheduler.schedule()
    assert [(span.sequence.request_id, span.num_logits) for span in plan.spans] == [(0, 1), (1, 0), (2, 6)]


def test_nobody_takes_the_pages_that_the_oldest_waits_for() -> None:
    scheduler = Scheduler(PageAllocator(10, 4), max_rows=64, max_sequences=5, pace=Fixed(8))
    scheduler.add(Sequence(0, [1] * 20, limit=24))
    step(scheduler)
    scheduler.add(Sequence(1, [2] * 24, limit=26))  # does not fit beside it
    scheduler.add(Sequence(2, [3] * 4, limit=26))  # would
    assert [step(scheduler) for _ in range(3)] == [{0: 1}] * 3
