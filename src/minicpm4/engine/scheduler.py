"""Which tokens run in the next step. Integers only.

Every step has room for ``max_rows`` tokens. Sequences that wait for one token (decoding) go first,
so nobody's stream stalls; what is left goes to prompts, oldest first, in chunks; then waiting
requests are let in, in order of arrival, while there are pages for them. When pages run out the
youngest sequence gives its pages back and is run again later (most of it from the prefix cache).
The oldest always makes progress, so every request ends.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from minicpm4.engine.pages import Copy, PageAllocator
from minicpm4.engine.sequence import FinishReason, Sequence, Status
from minicpm4.errors import RequestError


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Tokens start to start + count - 1 of a sequence; ``sample``: the last row's logits are wanted."""

    sequence: Sequence
    start: int
    count: int

    @property
    def sample(self) -> bool:
        return self.start + self.count == len(self.sequence.tokens)


@dataclass(slots=True, eq=False)
class StepPlan:
    """What one step does: first the page copies, in this order, then the rows."""

    rows: list[Rows] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return sum(rows.count for rows in self.rows)


class Scheduler:
    """Continuous batching with chunked prefill over the pages of ``pages``.

    At most ``max_rows`` tokens a step and ``max_sequences`` sequences at a time.
    """

    def __init__(self, pages: PageAllocator, *, max_rows: int, max_sequences: int) -> None:
        assert max_rows >= max_sequences >= 1, "a decoding sequence could starve"
        self.pages = pages
        self.max_rows, self.max_sequences = max_rows, max_sequences
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises RequestError when it could not end even alone."""
        # The last token is sampled, never run.
        need = self.pages.pages_for(max(sequence.limit - 1, len(sequence.tokens)))
        if need > self.pages.num_pages:
            raise RequestError(
                f"a request of up to {sequence.limit} tokens needs {need} pages of "
                f"{self.pages.page_size} tokens, the cache has {self.pages.num_pages}",
                "shorten the prompt, lower max_tokens, or plan a larger context",
            )
        _insert(self.waiting, sequence, Status.WAITING)

    def schedule(self) -> StepPlan:
        """Choose the next step's rows and give them pages. Follow with ``commit`` or ``rollback``."""
        plan = StepPlan()
        preempted = self._decodes(plan)
        self._prefills(plan)
        if not preempted:
            self._admissions(plan)
        assert plan.rows or not self.has_work, "no sequence can make progress"
        return plan

    def commit(self, plan: StepPlan) -> None:
        """The plan's rows are in the cache."""
        for rows in plan.rows:
            rows.sequence.computed += rows.count
            self.pages.seal(rows.sequence)

    def rollback(self, plan: StepPlan) -> None:
        """The plan was not carried out, or only partly: run its sequences again from the cache."""
        for rows in plan.rows:
            if rows.sequence.status is Status.RUNNING:
                self._preempt(rows.sequence)

    def fork(self, parent: Sequence, count: int) -> list[Sequence]:
        """Return ``count`` more samples of a sequence whose tokens have all run.

        They share its pages; those for which there is no room now wait and find the prefix cached.
        """
        assert parent.pending == 0 and parent.status is Status.RUNNING
        children = [parent.branch(parent.index + 1 + i) for i in range(count)]
        for child in children:
            if len(self.running) < self.max_sequences:
                self.pages.fork(parent, child)
                _insert(self.running, child, Status.RUNNING)
            else:
                _insert(self.waiting, child, Status.WAITING)
        return children

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence now and take its pages back."""
        queue = self.running if sequence.status is Status.RUNNING else self.waiting
        queue.remove(sequence)
        self.pages.release(sequence)
        sequence.status, sequence.finish_reason = Status.FINISHED, reason

    def abort(self, request_id: int) -> list[Sequence]:
        """End every sequence of a request; return those that were not done."""
        found = [s for s in self.running + self.waiting if s.request_id == request_id]
        for sequence in found:
            self.finish(sequence, "abort")
        return found

    def _decodes(self, plan: StepPlan) -> bool:
        before = self.num_preemptions
        for sequence in [s for s in self.running if s.pending == 1]:
            while sequence.status is Status.RUNNING:
                copies = self.pages.ensure(sequence, len(sequence.tokens))
                if copies is not None:
                    plan.copies += copies
                    plan.rows.append(Rows(sequence, sequence.computed, 1))
                    break
                self._preempt(self.running[-1])
        return self.num_preemptions > before

    def _prefills(self, plan: StepPlan) -> None:
        planned = {id(rows.sequence) for rows in plan.rows}
        left = self.max_rows - len(plan.rows)
        for sequence in self.running:
            if left and id(sequence) not in planned:
                left -= _add_rows(plan, sequence, left)

    def _admissions(self, plan: StepPlan) -> None:
        left = self.max_rows - plan.num_rows
        while self.waiting and left and len(self.running) < self.max_sequences:
            # One page for each running sequence stays, lest the newcomer be sent away at once.
            if not self.pages.admit(self.waiting[0], reserve=len(self.running)):
                break
            sequence = self.waiting.pop(0)
            if sequence.cached < 0:
                sequence.cached = sequence.computed
            _insert(self.running, sequence, Status.RUNNING)
            left -= _add_rows(plan, sequence, left)

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self.running.remove(sequence)
        self.pages.release(sequence)
        _insert(self.waiting, sequence, Status.WAITING)


def _add_rows(plan: StepPlan, sequence: Sequence, room: int) -> int:
    count = min(sequence.pending, room)
    plan.rows.append(Rows(sequence, sequence.computed, count))
    return count


def _insert(queue: list[Sequence], sequence: Sequence, status: Status) -> None:
    sequence.status = status
    insort(queue, sequence, key=lambda s: s.order)
