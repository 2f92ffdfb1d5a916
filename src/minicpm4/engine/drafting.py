"""Between an engine and its drafter: which sequences are guessed for in a step, and how much is checked."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from functools import partial
from time import perf_counter

from minicpm4.engine.drafter import Array, Drafter, Guess, Wish
from minicpm4.engine.effort import TRIAL, Costs, Record, most_rows, product, reached, worthwhile
from minicpm4.engine.sequence import MAX_DRAFTS, Sequence
from minicpm4.engine.steps import StepPlan

ROWS = 16  # of a step that a CPU's kernels multiply at once: the next one costs as many again


class Drafting:
    """Gives sequences drafts for their next step (``propose``), learns from it what came of them (``note``),
    and forgets them with ``drop``.

    ``tokens``: as many drafts for each, always; None: as many as gain time, by what steps have taken, which
    may be none. ``rows``: of a step that drafts may fill, where ``tokens`` says nothing.
    """

    def __init__(self, drafter: Drafter, *, tokens: int | None = None, rows: int = ROWS) -> None:
        assert tokens is None or 0 < tokens <= MAX_DRAFTS
        self.drafter, self.tokens, self.rows = drafter, tokens, rows
        self._costs = Costs()
        self._records: dict[tuple[int, int], Record] = {}
        self._guesses: dict[tuple[int, int], Guess] = {}
        self._guessing = 0.0  # seconds, of the last step

    def propose(self, running: Items[Sequence]) -> None:
        """Give drafts to those that wait for one token."""
        self._guesses.clear()
        self._guessing = 0.0
        decoding = [one for one in running if one.decodes]
        ready = [one for one in decoding if one.pending == 1 and one.num_sampled]
        wishes = self._fixed(ready) if self.tokens else self._measured(ready, len(decoding))
        if not wishes:
            return
        start = perf_counter()
        pairs = zip(wishes, self.drafter.guess(wishes), strict=True)
        self._guessing = perf_counter() - start
        found = {wish.sequence.order: (wish.sequence, guess) for wish, guess in pairs if guess is not None}
        if self.tokens:
            for sequence, guess in found.values():
                self._give(sequence, guess, range(len(guess.drafts)))
            return
        chances = [
            reached(guess.drafts, map(self._record(one).chance, guess.chances))
            for one, guess in found.values()
        ]
        row, room = self._costs.row(len(decoding)), most_rows(len(decoding), self.rows)
        kept = worthwhile(chances, len(decoding), row, room)
        for (sequence, guess), nodes in zip(found.values(), kept, strict=True):
            self._give(sequence, guess, nodes)
            if not nodes:
                price = 0.0 if self.drafter.is_free else row * len(decoding)
                self._record(sequence).left_out(price)

    def see(self, plan: StepPlan, paths: Items[Items[int]], hidden: Mapping[int, Array]) -> None:
        """Show the drafter the states of a step's text: of all rows but the drafts that were not accepted.
        ``hidden`` as in StepResult."""
        wanted = self.drafter.hidden
        if not wanted:
            return
        at = dict.fromkeys(wanted, 0)
        for span, path in zip(plan.spans, paths, strict=True):
            first = span.count - span.num_drafts
            rows = [*range(first), *(first + draft for draft in path)]
            if not span.sequence.is_read and set(wanted) <= set(span.hidden):
                states = {one: hidden[one][at[one] : at[one] + span.count][rows] for one in wanted}
                self.drafter.see(span.sequence, span.start, states)
            for one in at:
                at[one] += span.count if one in span.hidden else 0

    def note(self, plan: StepPlan, paths: Items[Items[int]], seconds: float) -> None:
        """A step has been run: of its spans' drafts these were accepted. ``seconds`` that it took, and
        proposing for it."""
        if self.tokens:
            return
        decoding = plan.spans[: plan.decoding]
        drafts = sum(span.num_drafts for span in decoding)
        if decoding and not plan.prompts and all(span.count == 1 + span.num_drafts for span in decoding):
            # A guess of which nothing was checked is no part of what a step takes without.
            self._costs.note(len(decoding), drafts, seconds if drafts else seconds - self._guessing)
        price = self._costs.row(len(decoding)) * len(decoding)
        for span, path in zip(decoding, paths, strict=False):
            guess = self._guesses.get(span.sequence.order)
            if span.drafts is not None and guess is not None:
                self._record(span.sequence).note(guess, span.drafts, path, price)

    def row_cost(self, sequences: int) -> float:
        """What a draft adds to a step that decodes so many sequences, in steps without drafts: measured."""
        return self._costs.row(sequences)

    def drop(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        self._records.pop(sequence.order, None)
        self._guesses.pop(sequence.order, None)
        self.drafter.drop(sequence)

    def start_over(self) -> None:
        """Forget all sequences; what was measured stays."""
        self._records.clear()
        self._guesses.clear()
        self.drafter.start_over()

    def _fixed(self, ready: Items[Sequence]) -> list[Wish]:
        assert self.tokens is not None
        mosts = [min(self.tokens, _left(one)) for one in ready]
        return [Wish(one, most, lambda _: True) for one, most in zip(ready, mosts, strict=True) if most > 0]

    def _measured(self, ready: Items[Sequence], decoding: int) -> list[Wish]:
        """Those for which drafts may pay; none in a step that tells what it takes without."""
        room = most_rows(decoding, self.rows)
        if not (self.drafter.is_free or self._costs.knows(decoding)):
            room = min(room, TRIAL)
        wishes = []
        for one in ready:
            record, most = self._record(one), min(room, _left(one))
            if record.resting:
                record.resting -= 1
            elif most > 0:
                wishes.append(Wish(one, most, partial(self._pays, record, decoding)))
        return [] if wishes and self._costs.wants_plain(decoding) else wishes

    def _pays(self, record: Record, decoding: int, chances: Items[float]) -> bool:
        """Whether another draft behind these can be worth its row."""
        return product(map(record.chance, chances)) > self._costs.row(decoding) * decoding

    def _give(self, sequence: Sequence, guess: Guess, nodes: Items[int]) -> None:
        sequence.drafts = guess.drafts.only(nodes)
        if sequence.drafts is not None:
            self._guesses[sequence.order] = Guess(sequence.drafts, tuple(guess.chances[i] for i in nodes))

    def _record(self, sequence: Sequence) -> Record:
        return self._records.setdefault(sequence.order, Record())


def _left(sequence: Sequence) -> int:
    """Drafts that may be checked before a sequence's end, the last token of which is never run."""
    return sequence.limit - 1 - len(sequence.tokens)
