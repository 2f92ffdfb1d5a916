"""What one step is asked to do. Integers only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from minicpm4.engine.pages import Copy
from minicpm4.engine.sequence import MAX_DRAFTS, Drafts, Sequence, Wanted


def logit_rows(max_sequences: int) -> int:
    """Rows of logits that a step may want: one of each sequence, and those of one full tree."""
    return max_sequences + MAX_DRAFTS


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """``count`` tokens of a sequence from position ``start`` on, to be run in one step, a row each.

    The last of them are its ``drafts``, where there are any. ``logits``: of which rows they are wanted.
    ``hidden``: after how many layers the hidden states of all of these rows are, as in ``StepResult``.
    """

    sequence: Sequence
    start: int
    count: int
    logits: Wanted = "none"
    hidden: tuple[int, ...] = ()
    drafts: Drafts | None = None

    @property
    def num_drafts(self) -> int:
        return 0 if self.drafts is None else len(self.drafts)

    @property
    def is_tree(self) -> bool:
        """Whether its rows do not all follow one another."""
        return self.drafts is not None and not self.drafts.is_chain

    @property
    def ids(self) -> list[int]:
        """The tokens of its rows: while the plan is not committed."""
        drafts = () if self.drafts is None else self.drafts.tokens
        return [*self.sequence.tokens[self.start : self.stop - len(drafts)], *drafts]

    @property
    def stop(self) -> int:
        return self.start + self.count

    @property
    def num_logits(self) -> int:
        """Rows whose logits are wanted."""
        return self.count if self.logits == "all" else int(self.logits == "last")

    @classmethod
    def next(cls, sequence: Sequence, room: int) -> Span:
        """The next tokens of a sequence, at most ``room``; with its last token, the last row's logits, unless
        it is only read."""
        count = min(sequence.pending, room)
        logits = sequence.wanted
        if logits == "last" and count < sequence.pending:
            logits = "none"
        return cls(sequence, sequence.computed, count, logits, sequence.hidden)

    def cut(self, count: int) -> list[Span]:
        """Its first ``count`` rows and the others, a span each where there are any; drafts are among the
        others."""
        if not 0 < count < self.count:
            return [self]
        first = replace(self, count=count, logits="all" if self.logits == "all" else "none", drafts=None)
        return [first, replace(self, start=self.start + count, count=self.count - count)]

    def with_drafts(self, drafts: Drafts) -> Span:
        """The same with drafts after its tokens, and the logits of all."""
        assert self.count == 1, "drafts follow one token"
        return replace(self, count=1 + len(drafts), logits="all", drafts=drafts)


@dataclass(slots=True, eq=False)
class StepPlan:
    """What one step does: first the page copies, in this order, then the rows of all spans.

    ``decoding``: how many of the spans, the first ones, run the token that was sampled last (and its drafts).
    Those of sequences that are only read come last.
    """

    spans: list[Span] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    decoding: int = 0

    @property
    def num_rows(self) -> int:
        return sum(span.count for span in self.spans)

    @property
    def prompts(self) -> list[tuple[int, int]]:
        """Of the spans that do not decode: first position, number of rows."""
        return [(span.start, span.count) for span in self.spans[self.decoding :]]
