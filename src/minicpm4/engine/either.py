"""An answer that is calls or a text of a given form: two matchers as one, until its beginning tells which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minicpm4.engine.vocabulary import Vocabulary

__all__ = ["Either"]

_BLANKS = (b"", b" ", b"\n")


@dataclass(frozen=True, slots=True)
class _Step:
    """A token: who could take it before, who took it, and how long the text was."""

    alive: list[Any]
    took: list[Any]
    length: int


@dataclass(slots=True)
class Either:
    """A matcher of what ``calls`` or ``text`` match. ``heads``: what begins with one of these is calls, as
    whoever reads it knows (``CallFormat.heads``); no text may begin so. ``counted``: which of the two have
    numbers as in JSON."""

    calls: Any
    text: Any
    heads: Sequence[bytes]
    vocabulary: Vocabulary
    counted: tuple[bool, bool]
    alive: list[Any] = field(init=False)
    _said: bytes = field(init=False, default=b"")
    _steps: list[_Step] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.alive = [self.calls, self.text]

    def deep_copy(self) -> Either:
        """One at its start, as this must be."""
        copies = self.calls.deep_copy(), self.text.deep_copy()
        return Either(*copies, self.heads, self.vocabulary, self.counted)

    @property
    def counts(self) -> bool:
        """Whether numbers stand as in JSON, whichever it is."""
        return all(
            counted
            for one, counted in zip((self.calls, self.text), self.counted, strict=True)
            if one in self.alive
        )

    def is_error(self) -> bool:
        return any(one.is_error() for one in self.alive)

    def is_stopped(self) -> bool:
        return all(one.is_stopped() for one in self.alive)

    def is_accepting(self) -> bool:
        return any(one.is_accepting() for one in self.alive)

    def compute_ff_tokens(self) -> list[int]:
        """The token that both would have next; all of the one that is left, once it is no beginning of calls
        any more."""
        if len(self.alive) == 1 and not self._may_head:
            return list(self.alive[0].compute_ff_tokens())
        firsts = [one.compute_ff_tokens()[:1] for one in self.alive]
        agreed = firsts[0] if all(first == firsts[0] for first in firsts) else []
        return [] if self.calls not in self.alive and {*agreed} & {*self._heading()} else agreed

    def compute_bitmask(self) -> bytes:
        """What one of them allows, but for texts that would begin like calls and be none."""
        masks = {id(one): np.frombuffer(one.compute_bitmask(), np.uint8) for one in self.alive}
        text, calls = masks.get(id(self.text)), masks.get(id(self.calls))
        if text is None:
            assert calls is not None, "one of the two is left"
            return calls.tobytes()
        both = text.copy() if calls is None else text | calls
        for token in self._heading():
            at, bit = token // 8, 1 << token % 8
            if calls is None or not calls[at] & bit:
                both[at] &= 0xFF ^ bit
        return both.tobytes()

    def consume_token(self, token: int) -> None:
        before, length = self.alive, len(self._said)
        took = [one for one in before if one.try_consume_tokens([token]) == 1 or one.is_error()]
        if not took:  # nobody's: its error is this one's
            before[0].consume_token(token)
            return
        if self._may_head:
            self._said += self.vocabulary.bytes_of(token)
        if len(took) > 1 and self._said.lstrip().startswith(tuple(self.heads)):
            self.text.rollback(1)
            took = [self.calls]
        self._steps.append(_Step(before, took, length))
        self.alive = took

    def rollback(self, n: int) -> None:
        for _ in range(n):
            step = self._steps.pop()
            for one in step.took:
                one.rollback(1)
            self.alive, self._said = step.alive, self._said[: step.length]

    @property
    def _may_head(self) -> bool:
        """Whether a text may yet turn out to begin as calls do."""
        said = self._said.lstrip()
        return self.text in self.alive and any(head.startswith(said) for head in self.heads)

    def _heading(self) -> list[int]:
        """Tokens with which a text would."""
        said = self._said.lstrip()
        if not self._may_head:
            return []
        rests = [head[len(said) :] for head in self.heads if head.startswith(said) and head != said]
        starts = [blank + rest for rest in rests for blank in (_BLANKS[:1] if said else _BLANKS)]
        return [token for start in starts for token in self.vocabulary.with_start(start)]
