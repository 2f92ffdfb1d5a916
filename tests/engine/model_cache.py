"""A cache of strings instead of arrays: what each page's slots hold, to catch wrong sharing."""

from __future__ import annotations

from minicpm4.engine.pages import Copy, PageAllocator
from minicpm4.engine.sequence import Sequence
from minicpm4.engine.steps import Span, StepPlan


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

    def write_drafts(self, span: Span) -> None:
        """Each draft's slot holds the text and its own path."""
        size, texts = self.pages.page_size, [tuple(span.sequence.tokens)]
        assert span.drafts is not None and len(texts[0]) == span.stop - span.num_drafts
        for token, parent in zip(span.drafts.tokens, span.drafts.parents, strict=True):
            t = len(texts[0]) + len(texts) - 1
            texts.append((*texts[parent + 1], token))
            self.slots[span.sequence.pages[t // size]][t % size] = texts[-1]

    def settle(self, plan: StepPlan, accepted: list[list[int]]) -> None:
        """Move the accepted drafts' slots to where they are the next tokens."""
        size = self.pages.page_size
        for span, path in zip(plan.spans, accepted, strict=True):
            first, pages = span.stop - span.num_drafts, span.sequence.pages
            for target, draft in enumerate(path, first):
                source = first + draft
                self.slots[pages[target // size]][target % size] = self.slots[pages[source // size]][
                    source % size
                ]

    def verify(self, sequence: Sequence) -> None:
        size = self.pages.page_size
        for t in range(sequence.computed):
            held = self.slots[sequence.pages[t // size]][t % size]
            assert held == tuple(sequence.tokens[: t + 1]), f"token {t} of {sequence.order} was overwritten"

    def run(self, plan: StepPlan) -> None:
        self.copy(plan.copies)
        for span in plan.spans:
            self.verify(span.sequence)
            self.write(span.sequence, span.start, span.stop - span.num_drafts)
            if span.drafts is not None:
                self.write_drafts(span)
