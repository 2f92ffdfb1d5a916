"""Prompts beside running answers: small enough for these to go on, and the short ones first.

The clock is simulated: a machine is what a step takes that decodes, what it takes more if there are prompts,
and for each of their tokens, and for each token that those read, all times some noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

import pytest

from minicpm4.engine.pace import LEAST, MOST, PROBE_EVERY, Pace, Room
from minicpm4.engine.pages import PageAllocator
from minicpm4.engine.scheduler import Scheduler
from minicpm4.engine.sequence import Sequence

ALONE = 0.030  # seconds of a step that decodes
NOISE: dict[str, Callable[[Random, float], float]] = {
    "none": lambda rng, seconds: seconds,
    "even": lambda rng, seconds: seconds * rng.uniform(1, 1.1),
    "normal": lambda rng, seconds: seconds * max(0.7, rng.gauss(1, 0.08)),
    "beside": lambda rng, seconds: seconds + abs(rng.gauss(0, 0.004)),
    "loud": lambda rng, seconds: seconds * (rng.uniform(1, 1.3) + rng.uniform(0, 2) * (rng.random() < 0.1)),
    "seldom": lambda rng, seconds: seconds * rng.uniform(1, 1.05) + 0.03 * (rng.random() < 0.02),
}
# Seconds of a step with prompts, of each of their tokens, of each that these read: alike at any depth, as
# seen with SmolLM2, with a start, of a fast machine, and where a few tokens take as long as decoding.
MACHINES = [(0, 2e-3, 0), (0, 2e-3, 7e-7), (5e-3, 1.3e-3, 7e-7), (0, 2e-4, 1e-7), (0.01, 4e-3, 1e-6)]


@dataclass
class Machine:
    """What has become of prompts beside eight chats: seconds of steps, and of newcomers' first tokens."""

    costs: tuple[float, float, float]
    noise: str = "none"
    pace: Pace = field(default_factory=Pace)
    steps: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    rng: Random = field(default_factory=lambda: Random(0))

    def run(self, spans: list[tuple[int, int]], decoding: int = 8) -> float:
        start, row, depth = self.costs
        rows = sum(count for _, count in spans)
        read = sum(count * (position + count / 2) for position, count in spans)
        seconds = NOISE[self.noise](self.rng, ALONE + (start if rows else 0) + row * rows + depth * read)
        self.pace.note(decoding, spans, seconds)
        self.steps.append(seconds)
        return seconds

    def idle(self, steps: int = 200) -> list[float]:
        """Steps without prompts."""
        return [self.run([]) for _ in range(steps)]

    def read(self, length: int, newcomers: int = 0) -> float:
        """Seconds in which a prompt is read, while so many others of 60 tokens come one after another;
        length 0: these alone."""
        done, short, left, began, seconds = 0, 0, newcomers, 0.0, 0.0
        while done < length or left:
            left_to_read = [length - done, *([60 - short] if left else [])]
            room, spans = self.pace.room(8, 512, [count for count in left_to_read if count]), []
            room.share(done, length - done)
            if left and (count := min(room.fits(short), 60 - short)):
                spans.append((short, count))
                room.take(short, count)
                short += count
            room.release()
            if count := min(room.fits(done), length - done):
                spans.append((done, count))
                room.take(done, count)
                done += count
            seconds += self.run(spans)
            if short == 60:
                self.first.append(seconds - began)
                short, left, began = 0, left - 1, seconds
        return seconds


def slowest(steps: list[float]) -> float:
    """Of a hundred the second slowest."""
    return sorted(steps)[int(len(steps) * 0.99)]


@pytest.mark.parametrize("newcomers", [0, 40])
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("costs", MACHINES, ids=str)
def test_one_step_in_a_hundred_may_take_twice_as_long(
    costs: tuple[float, float, float], noise: str, newcomers: int
) -> None:
    alone, beside = [], []
    for seed in range(6):
        machine = Machine(costs, noise, rng=Random(seed))
        alone += machine.idle(500)
        machine.steps.clear()
        machine.read(4096, newcomers)
        beside += machine.steps
    assert slowest(beside) <= 2.02 * slowest(alone)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("costs", MACHINES[:4], ids=str)
def test_a_long_prompt_is_read_about_as_fast_as_that_allows(
    costs: tuple[float, float, float], noise: str
) -> None:
    machine = Machine(costs, noise)
    noisy = sum(machine.idle()) / 200 / ALONE
    seconds = machine.read(8192)
    start, row, depth = costs
    best, done = 0.0, 0
    while done < 8192:  # every step as long as is aimed at
        done += max(1, round(((MOST - 1) * ALONE - start) / (row + depth * done)))
        best += MOST * ALONE
    assert seconds <= 1.25 * noisy * best


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("costs", MACHINES, ids=str)
def test_a_newcomer_waits_no_three_times_as_long_as_without_the_long_prompt(
    costs: tuple[float, float, float], noise: str
) -> None:
    machine = Machine(costs, noise)
    machine.idle()
    machine.read(0, 40)
    before = sorted(machine.first)
    machine.first.clear()
    machine.read(4096, 40)
    found = sorted(machine.first)
    assert found[20] <= 3 * before[20] and found[38] <= 3 * before[38]


def test_however_slow_prompts_go_on() -> None:
    machine = Machine((0, 1.0, 0))
    machine.idle(5)
    assert machine.read(20) < 25 and max(machine.steps[9:]) < 1.1, "a token at a time"


def test_a_step_that_was_held_up_is_not_the_end_of_prompts() -> None:
    machine = Machine((0, 2e-3, 0))
    machine.idle()
    machine.read(500)
    usual = machine.pace.room(8, 512).fits(0)
    machine.pace.note(8, [(500, usual)], 2.0)
    assert machine.pace.room(8, 512).fits(0) >= LEAST
    machine.read(1000)
    assert machine.pace.room(8, 512).fits(0) >= 0.8 * usual


@pytest.mark.parametrize("decoding", [8, 9])
def test_a_step_alone_that_was_held_up_makes_no_room_for_many_tokens(decoding: int) -> None:
    """Seen: one probe took six times as long as the others, and the next sixteen steps four times."""
    machine = Machine((0, 2e-3, 0), "even")
    machine.idle()
    machine.read(500)
    usual = machine.pace.room(8, 512).fits(0)
    machine.pace.note(decoding, [], 6 * ALONE)
    assert machine.pace.room(8, 512).fits(0) <= 1.6 * usual
    machine.pace.note(9, [], ALONE)
    assert machine.pace.room(decoding, 512).fits(0) <= 1.6 * usual


def test_what_decoding_takes_alone_is_measured_again_and_again() -> None:
    machine = Machine((0, 1e-4, 0))
    rooms = []
    for _ in range(3 * PROBE_EVERY):
        rooms.append(machine.pace.room(8, 512).fits(0))
        machine.run([(0, rooms[-1])] if rooms[-1] else [])
    assert rooms[0] == 0 and 3 <= rooms.count(0) <= 4


def test_nobody_decodes_nothing_is_held_back() -> None:
    pace = Pace()
    assert pace.room(0, 512).fits(0) == 512
    pace.note(0, [(0, 512)], 1.0)
    assert pace.room(0, 512).fits(9000) == 512


class Fixed(Pace):
    """Always the same room beside decoding."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._room = rows

    def room(self, decoding: int, rows: int, prompts: Iterable[int] = ()) -> Room:
        return Room(min(rows, self._room) if decoding else rows)


def prompts(rows: int, *lengths: int) -> Scheduler:
    """A scheduler with one sequence that decodes, and prompts of these lengths behind it."""
    scheduler = Scheduler(PageAllocator(100, 4), max_rows=64, max_sequences=5, pace=Fixed(rows))
    scheduler.add(Sequence(0, [1, 2, 3], limit=200))
    step(scheduler)
    for number, length in enumerate(lengths, 1):
        scheduler.add(Sequence(number, [length] * length, limit=200))
    return scheduler


@dataclass
class Crowd:
    """Eight chats that go on, and newcomers of 60 tokens, of whom each writes two: whenever fewer than
    ``waiting`` are unread the next comes."""

    machine: Machine
    waiting: int
    came: int = 0

    def __post_init__(self) -> None:
        pages = PageAllocator(1000, 64)
        self.scheduler = Scheduler(pages, max_rows=512, max_sequences=32, pace=self.machine.pace)
        self.unread: list[Sequence] = []
        for _ in range(8):
            self.come(1, 4000)
        for _ in range(40):
            self.step()

    def come(self, length: int, more: int) -> Sequence:
        self.came += 1
        self.scheduler.add(one := Sequence(self.came, [self.came] * length, limit=length + more))
        return one

    def step(self) -> None:
        self.unread = [one for one in self.unread if one.pending > 1]
        while len(self.unread) < self.waiting:
            self.unread.append(self.come(60, 2))
        plan = self.scheduler.schedule()
        self.scheduler.commit(plan)
        self.machine.run(plan.prompts, plan.decoding)
        for sequence in [span.sequence for span in plan.spans if not span.sequence.pending]:
            sequence.tokens.append(7)
            if len(sequence.tokens) == sequence.limit:
                self.scheduler.finish(sequence, "length")

    def steps_to_read(self, length: int) -> int:
        long, steps = self.come(length, 2), 0
        while long.pending > 1:
            self.step()
            steps += 1
        return steps


@pytest.mark.parametrize("waiting", [1, 3, 20])
@pytest.mark.parametrize("costs", MACHINES, ids=str)
def test_newcomers_that_never_cease_hold_a_long_prompt_up_by_a_bounded_number_of_steps(
    costs: tuple[float, float, float], waiting: int
) -> None:
    """Half of the room is its own, however many come: twice the steps, and whole tokens, which are few."""
    alone, beside = (Crowd(Machine(costs), count).steps_to_read(6136) for count in (0, waiting))
    assert beside <= 3 * alone


def answered(pace: Pace | None, rounds: int) -> float:
    """Tokens a second of 32 places, on a machine where a step takes as long as its sequences and rows need:
    chats of 100 tokens and answers of 64, all at once, and then one for each that has ended."""
    scheduler = Scheduler(PageAllocator(200, 64), max_rows=512, max_sequences=32, pace=pace)
    made, written, seconds = 0, 0, 0.0
    while made < 32 or scheduler.has_work:
        while made < 32 * rounds and len(scheduler.running) + len(scheduler.waiting) < 32:
            scheduler.add(Sequence(made := made + 1, [made] * 100, limit=164))
        plan = scheduler.schedule()
        scheduler.commit(plan)
        took = 8e-3 + 8e-4 * plan.num_rows
        if pace is not None:
            pace.note(plan.decoding, plan.prompts, took)
        seconds += took
        for sequence in [span.sequence for span in plan.spans if not span.sequence.pending]:
            sequence.tokens.append(7)
            written += 1
            if len(sequence.tokens) == sequence.limit:
                scheduler.finish(sequence, "length")
    return written / seconds


@pytest.mark.parametrize("rounds", [1, 6])
def test_a_crowd_of_short_chats_is_answered_about_as_fast_as_without_a_pace(rounds: int) -> None:
    """Seen without this: a few chats were answered at a time, while all others waited for a token a step."""
    assert answered(Pace(), rounds) > 0.9 * answered(None, rounds)


def test_a_crowd_of_long_texts_is_not_let_past_answers() -> None:
    machine = Machine((0, 2e-3, 0))
    machine.idle()
    machine.read(500)

    def rows(*prompts: int) -> int:
        return machine.pace.room(8, 512, prompts).fits(0)

    usual = rows(4000)
    assert rows(*[4000] * 32) == rows(4000, 60) == rows(60, 60) == usual
    assert rows(*[60] * 8) >= 1.6 * usual, "as far as steps may grow at once"


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
    scheduler.add(Sequence(2, [5] * 9, limit=100))
    assert step(scheduler) == {0: 1, 1: 4, 2: 4}
    assert step(scheduler) == {0: 1, 1: 4, 2: 4}
    assert step(scheduler) == {0: 1, 1: 8, 2: 1}, "what is left over is the oldest's"


def test_of_several_the_one_with_least_left_goes_first() -> None:
    scheduler = prompts(8, 100, 90, 10)
    assert step(scheduler) == {0: 1, 1: 4, 3: 4}
    assert step(scheduler) == {0: 1, 1: 4, 3: 4}
    assert step(scheduler) == {0: 1, 1: 4, 2: 2, 3: 2}


def test_a_text_that_is_read_goes_beside_answers_as_a_prompt_does() -> None:
    scheduler = prompts(8, 100)
    scheduler.add(Sequence(2, [5] * 30, limit=30, wanted="all"))
    assert step(scheduler) == {0: 1, 1: 4, 2: 4}
    plan = scheduler.schedule()
    assert [(span.sequence.request_id, span.num_logits) for span in plan.spans] == [(0, 1), (1, 0), (2, 4)]


def test_nobody_takes_the_pages_that_the_oldest_waits_for() -> None:
    scheduler = Scheduler(PageAllocator(10, 4), max_rows=64, max_sequences=5, pace=Fixed(8))
    scheduler.add(Sequence(0, [1] * 20, limit=24))
    step(scheduler)
    scheduler.add(Sequence(1, [2] * 24, limit=26))  # does not fit beside it
    scheduler.add(Sequence(2, [3] * 4, limit=26))  # would
    assert [step(scheduler) for _ in range(3)] == [{0: 1}] * 3
