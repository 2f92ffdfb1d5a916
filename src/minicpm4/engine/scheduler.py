"""Which tokens run in the next step. Integers only.

Every step has room for ``max_rows`` tokens. Sequences that wait for one token (decoding) go first,
so nobody's stream stalls, with the tokens that a grammar has added to their answers; what is left goes
to prompts, and texts that are only read, oldest first, in chunks; then waiting requests are let in, in
order of arrival, while there are pages for them. When pages run out the youngest sequence gives its pages
back and is run again later (most of it from the prefix cache; a text that is read, from its beginning).
The oldest always makes progress, so every request ends.

With a ``pace`` (engine/pace.py) prompts take less room beside decoding, and share it: the oldest has
half and what is left over, the others go by how little they have left, so that a short chat does not
wait for a long text, nor a long text for short chats that never cease.

Drafts come after all decoding and before prompts. They take rows and pages that are free and send
nobody away: where there is too little room, the first of a sequence's drafts are run, or none.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence as Items

from minicpm4.engine.pace import Pace, Room
from minicpm4.engine.pages import PageAllocator
from minicpm4.engine.sequence import FinishReason, Sequence, Status
from minicpm4.engine.steps import Span, StepPlan, logit_rows
from minicpm4.errors import RequestError

MAX_AT_ONCE = 64  # tokens of an answer in one step, those of others beside them


class Scheduler:
    """Continuous batching with chunked prefill over the pages of ``pages``.

    At most ``max_rows`` tokens a step and ``max_sequences`` sequences at a time. No drafts follow the first
    ``plain`` tokens of a text.
    """

    def __init__(
        self,
        pages: PageAllocator,
        *,
        max_rows: int,
        max_sequences: int,
        pace: Pace | None = None,
        plain: int = 0,
    ) -> None:
        assert max_rows >= max_sequences >= 1, "a decoding sequence could starve"
        self.pages, self.pace, self._plain = pages, pace, plain
        self.max_rows, self.max_sequences = max_rows, max_sequences
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def check(self, length: int, limit: int) -> None:
        """Raise RequestError unless ``length`` tokens that may grow to ``limit`` can end, if only alone."""
        # The last token is sampled, never run.
        need = self.pages.pages_for(max(limit - 1, length))
        if need > self.pages.num_pages:
            raise RequestError(
                f"a request of up to {limit} tokens needs {need} pages of "
                f"{self.pages.page_size} tokens, the cache has {self.pages.num_pages}",
                "shorten the prompt, lower max_tokens, or plan a larger context",
            )

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises RequestError when it could not end even alone."""
        self.check(len(sequence.tokens), sequence.limit)
        _insert(self.waiting, sequence, Status.WAITING)

    def schedule(self) -> StepPlan:
        """Choose the next step's rows and give them pages. Follow with ``commit`` or ``rollback``."""
        plan = StepPlan()
        preempted = self._decodes(plan)
        self._drafts(plan)
        plan.decoding = len(plan.spans)
        room = self.max_rows - plan.num_rows
        if self.pace is None:
            room = self._prefills(plan, room)
            if not preempted:
                self._admissions(plan, room)
        else:
            self._shares(plan, room, admit=not preempted)
        assert plan.spans or not self.has_work, "no sequence can make progress"
        plan.spans.sort(key=lambda span: span.sequence.is_read)
        return plan

    def commit(self, plan: StepPlan, accepted: Items[Items[int]] = ()) -> None:
        """The plan's rows are in the cache. ``accepted``: of each span the drafts with which its sequence has
        gone on, in order, a path; the others leave no trace. Nothing: none of any."""
        for span, path in zip(plan.spans, accepted or [()] * len(plan.spans), strict=True):
            sequence = span.sequence
            sequence.drafts = None
            sequence.computed = span.stop - span.num_drafts + len(path)
            if span.drafts is not None:
                assert span.drafts.is_path(path), "accepted drafts do not follow one another"
                text = sequence.tokens[sequence.computed - len(path) : sequence.computed]
                assert text == [span.drafts.tokens[i] for i in path], "an accepted draft is not in the text"
                self.pages.trim(sequence, sequence.computed)
            self.pages.seal(sequence)

    def rollback(self, plan: StepPlan) -> None:
        """The plan was not carried out, or only partly: run its sequences again from the cache."""
        for span in plan.spans:
            if span.sequence.status is Status.RUNNING:
                self._preempt(span.sequence)

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

    def _decodes(self, plan: StepPlan) -> bool:
        before = self.num_preemptions
        decoding = [s for s in self.running if s.decodes]
        left = self.max_rows - len(decoding)  # beside a row for each
        for sequence in decoding:
            while sequence.status is Status.RUNNING:
                count = min(sequence.pending, 1 + left, MAX_AT_ONCE)
                copies = self.pages.ensure(sequence, sequence.computed + count)
                if copies is not None:
                    plan.copies += copies
                    plan.spans.append(Span.next(sequence, count))
                    left -= count - 1
                    break
                self._preempt(self.running[-1])
        return self.num_preemptions > before

    def _drafts(self, plan: StepPlan) -> None:
        left = min(self.max_rows - plan.num_rows, logit_rows(self.max_sequences) - self.max_sequences)
        for index, span in enumerate(plan.spans):
            sequence = span.sequence
            if sequence.pending > 1 or sequence.drafts is None or len(sequence.tokens) == sequence.num_prompt:
                continue
            if span.start < self._plain:
                continue
            drafts = sequence.drafts
            # The token at the sequence's limit is never run.
            room = min(left, len(drafts), sequence.limit - 1 - len(sequence.tokens))
            copies = self.pages.ensure(sequence, len(sequence.tokens) + room)
            if copies is None:
                room = len(sequence.pages) * self.pages.page_size - len(sequence.tokens)
            assert not copies, "the page of its next token is its own"
            if room > 0:
                plan.spans[index] = span.with_drafts(drafts.first(room))
                left -= room

    def _prefills(self, plan: StepPlan, room: int) -> int:
        planned = {id(span.sequence) for span in plan.spans}
        for sequence in self.running:
            if room and id(sequence) not in planned:
                room -= _add_span(plan, sequence, room)
        return room

    def _admissions(self, plan: StepPlan, room: int) -> None:
        while self.waiting and room:
            sequence = self.waiting[0]
            if not self._admit(sequence):
                break
            room -= _add_span(plan, sequence, room)

    def _shares(self, plan: StepPlan, rows: int, *, admit: bool) -> None:
        assert self.pace is not None
        planned = {id(span.sequence) for span in plan.spans}
        prompts = [one for one in self.running if id(one) not in planned]
        places = self.max_sequences - len(self.running)
        coming = min(places, len(self.waiting)) if admit else 0
        nearest = (one.pending for one in [*prompts, *self.waiting[:coming]])
        room = self.pace.room(plan.decoding, rows, nearest)
        prompts += self.waiting if admit else []
        if not prompts or not room.fits(0):
            return
        oldest: Sequence | None = min(prompts, key=lambda one: one.order)
        assert oldest is not None
        if oldest.status is Status.WAITING and not self._admit(oldest):
            # Nobody may take the pages that it waits for.
            oldest = None
            prompts = [one for one in prompts if one.status is Status.RUNNING]
        else:
            prompts.remove(oldest)
            room.share(oldest.computed, oldest.pending)
        for sequence in sorted(prompts, key=lambda one: (one.pending, one.order)):
            if room.fits(sequence.computed) and (sequence.status is Status.RUNNING or self._admit(sequence)):
                _fill(plan, sequence, room)
        room.release()
        if oldest is not None:
            _fill(plan, oldest, room)

    def _admit(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence was let in."""
        if len(self.running) >= self.max_sequences:
            return False
        # One page for each running sequence stays, lest the newcomer be sent away at once.
        if not self.pages.admit(sequence, reserve=len(self.running)):
            return False
        self.waiting.remove(sequence)
        if sequence.cached < 0:
            sequence.cached = sequence.computed
        _insert(self.running, sequence, Status.RUNNING)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self.running.remove(sequence)
        self.pages.release(sequence)
        _insert(self.waiting, sequence, Status.WAITING)


def _add_span(plan: StepPlan, sequence: Sequence, room: int) -> int:
    plan.spans.append(Span.next(sequence, room))
    return plan.spans[-1].count


def _fill(plan: StepPlan, sequence: Sequence, room: Room) -> None:
    """As much of a prompt as there is room for."""
    count = room.fits(sequence.computed)
    if count:
        room.take(sequence.computed, _add_span(plan, sequence, count))


def _insert(queue: list[Sequence], sequence: Sequence, status: Status) -> None:
    sequence.status = status
    insort(queue, sequence, key=lambda s: s.order)
