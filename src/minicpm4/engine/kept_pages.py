"""Which pages go to a store outside of the cache, and which come from there: integers only.

A page is saved soon after it was sealed. A prompt whose next pages are in the store waits outside of the
scheduler while they are brought, some between two steps, so that running answers go on; the scheduler then
finds them as it finds any cached page.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from typing import Protocol

from minicpm4.engine.pages import PageAllocator, PageKey
from minicpm4.engine.scheduler import Scheduler
from minicpm4.engine.sequence import Sequence

PATIENCE = 0.05  # seconds for which an engine that has nothing else to do waits for the store


class PageStore(Protocol):
    """Where pages are kept: see PageFiles."""

    @property
    def room_for_pages(self) -> int: ...

    def has(self, key: PageKey) -> bool: ...

    def fill(self, page: int, key: PageKey) -> bool: ...

    def save(self, page: int, key: PageKey, patience: float = 0.0) -> bool: ...

    def close(self) -> None: ...


class KeptPages:
    """Between an engine's pages and a store, as long as its weights are those of ``version``."""

    def __init__(self, store: PageStore, version: int) -> None:
        self._store, self._version = store, version
        self._on = True
        self._sealed: deque[tuple[int, PageKey]] = deque()
        self.coming: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.coming or self._sealed)

    def start_over(self, pages: PageAllocator, version: int) -> None:
        """The pages are new, and all sequences with the scheduler. Of other weights nothing is kept: no file
        says which they are."""
        self._on = version == self._version
        self.coming, self._sealed = [], deque()
        if self._on:
            pages.sealed = self._sealed

    def takes(self, sequence: Sequence, pages: PageAllocator) -> bool:
        """Whether a new sequence is to wait here until its pages have come."""
        key = pages.missing(sequence) if self._on else None
        if key is None or not self._store.has(key):
            return False
        self.coming.append(sequence)
        return True

    def let_go(self, sequences: Items[Sequence], scheduler: Scheduler) -> None:
        """Sequences that may be here are the scheduler's from now on."""
        for sequence in sequences:
            if sequence in self.coming:
                self.coming.remove(sequence)
                scheduler.add(sequence)

    def bring(self, scheduler: Scheduler) -> None:
        """Before a step: have some pages come."""
        pages, left = scheduler.pages, self._store.room_for_pages
        while self.coming and left > 0:
            sequence = self.coming[0]
            earlier = (one for one in (*scheduler.running, *scheduler.waiting) if one.order < sequence.order)
            if len(list(earlier)) >= scheduler.max_sequences:
                break  # they would take the room of what is brought now; who came later goes behind it
            brought, more = pages.bring(sequence, self._store.fill, left)
            left -= brought
            if not more:
                self.let_go([sequence], scheduler)

    def save(self, scheduler: Scheduler) -> None:
        """After a step: save the pages that it has sealed, as far as there is room."""
        pages = scheduler.pages
        while self._sealed:
            page, key = self._sealed[0]
            idle = not (scheduler.has_work or self.coming)
            if pages.holds(page, key.digest) and not self._store.save(page, key, PATIENCE if idle else 0.0):
                break
            self._sealed.popleft()

    def close(self, pages: PageAllocator | None) -> None:
        """Save what is left in ``pages``, if they are whole, and wait until it is written."""
        while pages is not None and self._sealed:
            page, key = self._sealed.popleft()
            if pages.holds(page, key.digest):
                self._store.save(page, key, 60.0)
        self._store.close()
