"""A cache of strings instead of arrays: what each page's slots hold, to catch wrong sharing."""

from __future__ import annotations

from minicpm4.engine.pages import Copy, PageAllocator
from minicpm4.engine.scheduler import StepPlan
from minicpm4.engine.sequence import Sequence


class ModelCache:
    """Slot t of a page holds the whole prefix up to its token, as a forward pass would depend on it."""

    def __init__(self, pages: PageAllocator) -> None:
        self.pages = pages
        self.slots = [[()] * pages.page_size for _ in range(pages.num_pages)]

    def copy(self, copies: list[Copy]) -> None:
        for source, target in copies:
            self.slots[target] = list(self.slots[source])

    def write(self, sequence: Sequence, start: int, stop: int) -> None:
        size = self.pages.page_size
        for t in range(start, stop):
            self.slots[sequence.pages[t // size]][t % size] = tuple(sequence.tokens[: t + 1])

    def verify(self, sequence: Sequence) -> None:
        size = self.pages.page_size
        for t in range(sequence.computed):
            held = self.slots[sequence.pages[t // size]][t % size]
            assert held == tuple(sequence.tokens[: t + 1]), f"token {t} of {sequence.order} was overwritten"

    def run(self, plan: StepPlan) -> None:
        self.copy(plan.copies)
        for rows in plan.rows:
            self.verify(rows.sequence)
            self.write(rows.sequence, rows.start, rows.start + rows.count)
