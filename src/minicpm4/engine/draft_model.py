"""A smaller model of the same vocabulary as a drafter: it writes on, greedily, what the larger one may write.

It has pages of its own, in which each sequence is read beside the larger model: what was guessed and did not
become text is trimmed there as well, what it has missed it reads before it guesses again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from minicpm4.engine.drafter import Guess, Wish
from minicpm4.engine.pages import Copy, PageAllocator
from minicpm4.engine.runner import StepRunner
from minicpm4.engine.sequence import Drafts, Sequence
from minicpm4.engine.steps import Span, StepPlan
from minicpm4.kernels.contract import Array, OpTable


@dataclass(slots=True, eq=False)
class _Mirror:
    """A sequence in the small model's pages; its first ``known`` tokens are text, what follows are drafts."""

    sequence: Sequence
    known: int


@dataclass(slots=True, eq=False)
class _Chain:
    """Drafts for one sequence, and the mirror that they have been appended to."""

    wish: Wish
    mirror: Sequence
    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        return len(self.tokens) < self.wish.most and self.wish.pays(self.chances)

    @property
    def guess(self) -> Guess | None:
        return Guess(Drafts.chain(self.tokens), tuple(self.chances)) if self.tokens else None


class ModelDrafter:
    """A Drafter over the ``runner`` of a model; ``ops`` is the table for its logits, which are the host's.

    ``max_rows``: tokens that it reads in one step, and of what it has missed before a guess; ``context``: the
    longest text that it reads, beyond which it does not guess; ``vocab_size``: tokens that it may guess.
    """

    is_free = False
    hidden: tuple[int, ...] = ()

    def __init__(
        self,
        runner: StepRunner,
        ops: OpTable,
        *,
        num_pages: int,
        page_size: int,
        max_rows: int,
        context: int,
        vocab_size: int,
    ) -> None:
        self._runner, self._ops = runner, ops
        self._sizes = num_pages, page_size
        self._max_rows, self._context, self._vocab_size = max_rows, context, vocab_size
        self.start_over()

    def start_over(self) -> None:
        """See Drafter."""
        self._pages = PageAllocator(*self._sizes)
        self._mirrors: dict[tuple[int, int], _Mirror] = {}

    def see(self, sequence: Sequence, start: int, states: Mapping[int, Array]) -> None:
        """See Drafter. It asks for none."""

    def drop(self, sequence: Sequence) -> None:
        """See Drafter. What was read of its text stays findable, as in any prefix cache."""
        mirror = self._mirrors.pop(sequence.order, None)
        if mirror is not None:
            self._pages.release(mirror.sequence)

    def guess(self, wishes: Items[Wish]) -> list[Guess | None]:
        """See Drafter. Where it has missed much, as a long prompt, it reads some of it and guesses later."""
        chains = [self._chain(wish) for wish in wishes]
        known = [chain for chain in chains if chain is not None]
        left = self._max_rows
        for chain in known:
            left -= self._read_missed(chain.mirror, left)
        going = [chain for chain in known if chain.mirror.pending == 1 and chain.goes_on]
        while going:
            going = [chain for chain in self._next(going) if chain.goes_on]
        return [None if chain is None else chain.guess for chain in chains]

    def _chain(self, wish: Wish) -> _Chain | None:
        """The sequence as it is now, in pages of its own; None where these have no room."""
        one = wish.sequence
        most = min(wish.most, self._context - len(one.tokens))
        if most < 1:
            return None
        mirror = self._mirrors.get(one.order)
        if mirror is None:
            sequence = Sequence(one.request_id, list(one.tokens), one.limit, one.index)
            if not self._pages.admit(sequence):
                return None
            mirror = self._mirrors[one.order] = _Mirror(sequence, len(one.tokens))
        else:
            self._follow(mirror, one.tokens)
        return _Chain(Wish(one, most, wish.pays), mirror.sequence)

    def _follow(self, mirror: _Mirror, tokens: list[int]) -> None:
        """A sequence has gone on, with some of the drafts or without."""
        own = mirror.sequence
        alike, most = min(own.computed, mirror.known), min(own.computed, len(tokens) - 1)
        while alike < most and own.tokens[alike] == tokens[alike]:
            alike += 1
        self._pages.trim(own, alike)
        own.tokens[alike:] = tokens[alike:]
        mirror.known = len(tokens)

    def _read_missed(self, mirror: Sequence, room: int) -> int:
        """Read what comes before its last token, at most ``room`` tokens. Returns how many."""
        count = min(mirror.pending - 1, room)
        if count <= 0:
            return 0
        copies = self._pages.ensure(mirror, mirror.computed + count)
        if copies is None:
            return 0
        self._step([Span.next(mirror, count)], copies)
        return count

    def _next(self, going: list[_Chain]) -> list[_Chain]:
        """Guess one more token of each for which there is room."""
        found, spans, copies = [], [], []
        for chain in going:
            own = self._pages.ensure(chain.mirror, len(chain.mirror.tokens))
            if own is not None:
                copies += own
                found.append(chain)
                spans.append(Span.next(chain.mirror, 1))
        if not found:
            return []
        logits = self._step(spans, copies)
        totals = self._ops.log_sum_exp(logits)
        for chain, row, total in zip(found, logits[:, : self._vocab_size], totals, strict=True):
            token = int(row.argmax())
            chain.tokens.append(token)
            chain.chances.append(min(math.exp(float(row[token]) - float(total)), 1.0))
            chain.mirror.tokens.append(token)
        return found

    def _step(self, spans: list[Span], copies: list[Copy]) -> Array:
        """Run rows of the small model; their logits, valid until the next."""
        result = self._runner.execute(StepPlan(spans, copies))
        logits = result.first_logits(sum(span.num_logits for span in spans))
        for span in spans:
            span.sequence.computed = span.stop
            self._pages.seal(span.sequence)
        return logits
