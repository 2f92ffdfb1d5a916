"""Drafts are checked where they bring more tokens a second, and not where they do not."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from minicpm4.engine.drafter import Guess, Wish
from minicpm4.engine.drafting import Drafting
from minicpm4.engine.effort import Costs, Record, reached, worthwhile
from minicpm4.engine.sequence import Drafts, Sequence
from minicpm4.engine.steps import Span, StepPlan


def test_a_draft_must_bring_more_than_its_row_takes() -> None:
    assert worthwhile([[0.9, 0.8, 0.2]], 1, 0.3, 16) == [[0, 1]]
    assert worthwhile([[0.9, 0.8, 0.2]], 1, 0.01, 16) == [[0, 1, 2]]
    assert worthwhile([[0.9, 0.8, 0.2]], 1, 1.0, 16) == [[]]
    assert worthwhile([[0.5], [0.9]], 2, 0.1, 1) == [[], [0]], "the likeliest has the room"
    assert worthwhile([[0.5]], 4, 0.2, 16) == [[]], "beside three others a row costs four tokens' time"


def test_chances_of_a_tree_fall_along_its_paths() -> None:
    assert reached(Drafts((1, 2, 3), (-1, 0, -1)), (0.5, 0.5, 0.25)) == [0.5, 0.25, 0.25]


def test_chances_become_those_that_were_seen() -> None:
    record, drafts = Record(), Drafts.chain([1, 2])
    guess = Guess(drafts, (0.9, 0.9))
    for _ in range(40):
        record.note(guess, drafts, [], 0.1)
    assert record.chance(0.9) < 0.2 and record.chance(0.5) == 0.5
    for _ in range(80):
        record.note(guess, drafts, [0, 1], 0.1)
    assert record.chance(0.9) > 0.8


def test_costs_are_those_of_steps() -> None:
    costs = Costs()
    assert costs.wants_plain(1)
    for _ in range(200):
        for drafts in (0, 3, 7):
            costs.note(1, drafts, 0.01 * (1 + 0.2 * drafts))
    assert costs.row(1) == pytest.approx(0.2, rel=0.1) and not costs.wants_plain(1) and costs.wants_plain(2)
    costs.note(1, 0, 5.0)  # held up once
    assert costs.row(1) == pytest.approx(0.2, rel=0.1)


@dataclass
class World:
    """A machine on which a draft adds ``row`` to a step of 10 ms, and a drafter that is right as often as
    ``right`` says."""

    row: float
    right: float
    says: float = 0.6
    rng: Random = field(default_factory=lambda: Random(2))
    tokens: int = 0
    seconds: float = 0.0
    asked: int = 0
    is_free: bool = False
    hidden: tuple[int, ...] = ()

    def guess(self, wishes: list[Wish]) -> list[Guess | None]:
        self.asked += 1
        return [Guess(Drafts.chain([1] * wish.most), (self.says,) * wish.most) for wish in wishes]

    def see(self, sequence: Sequence, start: int, states: Any) -> None: ...
    def drop(self, sequence: Sequence) -> None: ...
    def start_over(self) -> None: ...

    def run(self, steps: int) -> float:
        """Tokens a second, as a part of those without drafts."""
        drafting, one = Drafting(self), Sequence(0, [1], 10**9)
        self.tokens, self.seconds = 0, 0.0
        for _ in range(steps):
            one.tokens.append(1)
            one.computed = len(one.tokens) - 1
            drafting.propose([one])
            span = Span.next(one, 1)
            if one.drafts is not None:
                span = span.with_drafts(one.drafts)
            path: list[int] = []
            while len(path) < span.num_drafts and self.rng.random() < self.right:
                path.append(len(path))
            took = 0.01 * (1 + self.row * span.num_drafts) * self.rng.uniform(0.9, 1.3)
            drafting.note(StepPlan([span], decoding=1), [path], took)
            self.tokens, self.seconds = self.tokens + 1 + len(path), self.seconds + took
            one.drafts = None
        return self.tokens / self.seconds * 0.01 * 1.1


@pytest.mark.parametrize(
    ("row", "right", "least"),
    [(0.3, 0.0, 0.97), (0.3, 0.2, 0.97), (1.5, 0.9, 0.97), (0.3, 0.95, 2.0), (0.05, 0.8, 2.3)],
)
def test_it_is_hardly_ever_slower_and_often_faster(row: float, right: float, least: float) -> None:
    assert World(row, right).run(3000) > least


def test_what_a_slow_drafter_takes_is_found_out_with_few_drafts() -> None:
    """One that is right but takes longer than it gains: short answers are hardly slower either."""
    assert World(1.5, 0.95, says=0.95).run(60) > 0.85


def test_a_drafter_that_is_never_right_is_hardly_asked() -> None:
    world = World(0.3, 0.0, says=0.9)
    world.run(3000)
    assert world.asked < 400
