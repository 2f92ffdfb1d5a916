"""A smaller model of the same vocabulary as a drafter: it writes on, greedily, what the larger one may write.

It has pages of its own, in which each sequence is read beside the larger model: what was guessed and did not
become text is trimmed there as well, what it has missed it reads before it guesses again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import accumulate

from minicpm4.engine.draft_chain import Chain, choose
from minicpm4.engine.drafter import Guess, Wish
from minicpm4.engine.pages import Copy, PageAllocator
from minicpm4.engine.runner import StepRunner
from minicpm4.engine.sequence import Sequence
from minicpm4.engine.steps import Span, StepPlan
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.step import Array, Ints
from minicpm4.model.forward import logits
from minicpm4.model.ranks import FewTokens
from minicpm4.model.weights import ModelWeights


@dataclass(slots=True, eq=False)
class _Mirror:
    """A sequence in the small model's pages; its first ``known`` tokens are text, what follows are drafts."""

    sequence: Sequence
    known: int


@dataclass(slots=True, eq=False, kw_only=True)
class _Chain(Chain):
    """Its drafts are appended to the ``mirror``, too."""

    mirror: Sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class SomeLogits:
    """The logits ``of`` final states (k, hidden), those after all ``layers``, for some ``tokens`` alone."""

    layers: int
    tokens: Ints
    of: Callable[[Array], Array]


class ModelDrafter:
    """A Drafter over the ``runner`` of a model; ``ops`` is the table for its logits, which are the host's.

    ``max_rows``: tokens that it reads in one step, and of what it has missed before a guess; ``context``: the
    longest text that it reads, beyond which it does not guess; ``vocab_size``: tokens that it may guess, or
    ``few`` of them.
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
        few: SomeLogits | None = None,
    ) -> None:
        self._runner, self._ops, self._few = runner, ops, few
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
            hidden = () if self._few is None else (self._few.layers,)
            sequence = Sequence(one.request_id, list(one.tokens), one.limit, one.index, hidden=hidden)
            if not self._pages.admit(sequence):
                return None
            mirror = self._mirrors[one.order] = _Mirror(sequence, len(one.tokens))
        else:
            self._follow(mirror, one.tokens)
        return _Chain(wish=Wish(one, most, wish.pays), mirror=mirror.sequence)

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
        few = None if self._few is None else self._few.tokens
        choose(self._ops, found, self._step(spans, copies), few, self._vocab_size)
        for chain in found:
            chain.mirror.tokens.append(chain.tokens[-1])
        return found

    def _step(self, spans: list[Span], copies: list[Copy]) -> Array:
        """Run rows of the small model; their logits, valid until the next."""
        result = self._runner.execute(StepPlan(spans, copies))
        if self._few is None:
            found = result.first_logits(sum(span.num_logits for span in spans))
        else:
            last = [row - 1 for row in accumulate(span.count for span in spans)]
            found = self._few.of(result.hidden[self._few.layers][last])
        for span in spans:
            span.sequence.computed = span.stop
            self._pages.seal(span.sequence)
        return found


def some_logits(ops: OpTable, weights: ModelWeights, few: FewTokens) -> SomeLogits:
    """The logits of a model for some tokens alone; on the host."""

    def of(states: Array) -> Array:
        return ops.get(logits(ops, weights, states, head=few.linear))

    return SomeLogits(layers=weights.config.num_hidden_layers, tokens=few.tokens, of=of)
