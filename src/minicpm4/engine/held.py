"""What holds one sample to its grammar, token by token.

An answer goes through phases: reasoning, free text, and what a grammar holds. Reasoning and free text end
with a mark: that which closes the thought, or opens a call. They are kept with their beginnings, so that
tokens can be taken back across them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.engine.either import Either
from minicpm4.engine.grammar_text import line
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.vocabulary import Vocabulary
from minicpm4.errors import RequestError
from minicpm4.kernels.step import Array
from minicpm4.text.reasoning import Marks
from minicpm4.text.replies import Reasoning

__all__ = ["Entry", "Grammar"]

# Digits of a number in JSON, after which it ends where it may: more than a double holds. Small models run on.
MAX_DIGITS = 20
_GOING_ON = ("NotStopped", "NoExtension", "NoExtensionBias", "EndOfSentence")


@dataclass(frozen=True, slots=True)
class Entry:
    """A mark in free text, and what makes the matcher (at its start) of what follows. ``first``: it counts
    only where the answer begins with it, and only if the matcher can go on; then the answer ends with it."""

    mark: bytes
    matcher: Callable[[], Any]
    first: bool = False


@dataclass(slots=True)
class _Phase:
    """``start``: how many tokens were before it, the last ``opened`` of which no matcher took. ``matcher``:
    what holds it; None: nothing does, until a mark comes. ``closing``: marks, of which one ends reasoning.
    ``last``: nothing comes behind it."""

    start: int
    matcher: Any = None
    numbers: _Numbers | None = None
    closing: tuple[bytes, ...] = ()
    opened: int = 0
    last: bool = False


@dataclass(slots=True)
class _Stretch:
    """``tokens`` that ``matcher`` leaves no choice about, behind the answer's first ``start``; none: there it
    leaves one."""

    matcher: Any
    start: int
    tokens: Sequence[int]


class Grammar:
    """Holds one sample to its grammar: a Constraint.

    ``matcher``: what the whole answer behind the model's reasoning follows. Without it the answer is free
    until one of ``entries`` comes, held as that says, and free again; with ``once`` it ends there.
    ``reasoning``: how the answer begins; a free one may also open a thought by ``marks``. While the model
    reasons before an answer that is held, only the end of the answer is forbidden. ``counts``: numbers stand
    as in JSON, and end at MAX_DIGITS.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocabulary: Vocabulary,
        reasoning: Reasoning,
        matcher: Any = None,
        *,
        entries: Sequence[Entry] = (),
        marks: Sequence[Marks] = (),
        once: bool = False,
        counts: bool = False,
    ) -> None:
        self._name = params.constraint or ""
        self._bias, self._matcher, self._vocabulary = params.logit_bias, matcher, vocabulary
        self._entries, self._once, self._counts = entries, once, counts
        self._closing = tuple(mark.encode() for mark in reasoning.closing)
        self._opening = reasoning.opening_id
        self._marks = [(opening.encode(), closing.encode()) for opening, closing in marks]
        self._tokens: list[int] = []
        thinks = bool(self._closing) and self._opening is None
        self._phases = [_Phase(0, closing=self._closing) if thinks else self._answer()]
        self._stretch = _Stretch(None, 0, ())
        self._banned: tuple[int, list[int]] = (-1, [])  # how many tokens there were, and what was banned

    @property
    def active(self) -> bool:
        """See Processor."""
        return self._matcher is not None or self._phase.matcher is not None or bool(self._not_next())

    @property
    def complete(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        matcher = self._phase.matcher
        if matcher is None or self._may_open or matcher.is_error():
            return False
        if matcher.is_stopped():
            return self._matcher is not None or self._phase.last
        if self._vocabulary.end_ids or not matcher.is_accepting():
            return False
        tokens = np.unpackbits(self._mask(), bitorder="little")[: self._vocabulary.size]
        return not tokens.any()  # and there is no token by which to end

    def forced(self) -> int | None:
        """The token that comes next whatever the logits are; None where there is a choice, or none at all."""
        token = self._alone()
        return None if token is None or self._bias.get(token) == -np.inf else token

    def _alone(self) -> int | None:
        """The one token that the matcher allows; None where there are more, or none. Those behind it are kept
        until the answer is there: to ask anew at each token would cost a long stretch its square."""
        matcher, at = self._phase.matcher, len(self._tokens)
        if matcher is None or self._may_open or matcher.is_stopped():
            return None
        known = self._stretch
        if known.matcher is not matcher or not (known.start == at or known.start < at < self._known_to):
            known = self._stretch = _Stretch(matcher, at, matcher.compute_ff_tokens())
        token = known.tokens[at - known.start] if known.tokens else None
        return None if token is None or token >= self._vocabulary.size else int(token)

    @property
    def _known_to(self) -> int:
        return self._stretch.start + len(self._stretch.tokens)

    def adjust(self, logits: Array) -> None:
        """See Processor. Raises RequestError where the grammar has become too hard, or allows no token."""
        numbers = self._phase.numbers
        if self._phase.matcher is None:
            logits[self._not_next()] = -np.inf
            return
        alone = self._alone()
        if alone is not None and alone < len(logits):
            only = logits[alone]
            logits[:] = -np.inf
            logits[alone] = only
            return
        mask = self._mask()
        if self._may_open:
            mask = mask.copy()
            mask[self._opening // 8] |= 1 << self._opening % 8  # type: ignore[operator]
        if not mask.any():
            raise RequestError(
                f"{self._name}: no token of the model's vocabulary can go on with the answer",
                "use another grammar, or another model",
            )
        added = self._vocabulary.added(mask)[: len(logits)]
        if numbers is not None and numbers.digits >= MAX_DIGITS and _counts(self._phase.matcher):
            digits = self._vocabulary.digits
            before = added[digits]
            added[digits] = -np.inf
            if added.max() == -np.inf:  # the schema wants more of them
                added[digits] = before
        with np.errstate(invalid="ignore"):  # of an infinite logit, which the sampler refuses
            logits[: len(added)] += added
        logits[len(added) :] = -np.inf

    def accept(self, token: int) -> None:
        """See Processor. Raises RequestError for a token that the grammar does not allow."""
        opens, phase = self._may_open and token == self._opening, self._phase
        at, known = len(self._tokens), self._stretch
        if known.start <= at < self._known_to and token != known.tokens[at - known.start]:
            self._stretch = _Stretch(None, 0, ())
        self._tokens.append(token)
        if opens:
            self._phases.append(_Phase(1, closing=self._closing, opened=1))
        elif phase.matcher is not None:
            if token not in self._vocabulary.end_ids:
                self._consume(phase, token)
        elif phase.closing:
            if any(self._behind(mark) is not None for mark in phase.closing):
                self._phases.append(self._answer())
        else:
            self._look_for_entries()

    def undo(self, n: int) -> None:
        """See Processor."""
        kept, stop = len(self._tokens) - n, len(self._tokens)
        while self._phase.start > kept:
            ended = self._phases.pop()
            stop = ended.start - ended.opened
        phase = self._phase
        if phase.matcher is not None:
            taken = self._tokens[kept:stop]
            consumed = sum(token not in self._vocabulary.end_ids for token in taken)
            if consumed:
                phase.matcher.rollback(consumed)
                if phase.numbers is not None:
                    phase.numbers.undo(consumed)
        del self._tokens[kept:]
        if kept < self._stretch.start:
            self._stretch = _Stretch(None, 0, ())
        self._banned = (-1, [])

    @property
    def _phase(self) -> _Phase:
        return self._phases[-1]

    def _answer(self) -> _Phase:
        """The phase in which the answer begins."""
        if self._matcher is None:
            return _Phase(len(self._tokens))
        return self._held(self._matcher, last=True)

    def _held(self, matcher: Any, *, last: bool) -> _Phase:
        numbers = _Numbers() if self._counts else None
        return _Phase(len(self._tokens), matcher.deep_copy(), numbers, last=last)

    def _consume(self, phase: _Phase, token: int) -> None:
        phase.matcher.consume_token(token)
        self._check(phase.matcher)
        if phase.numbers is not None:
            phase.numbers.read(self._vocabulary.bytes_of(token))
        if not phase.last and phase.matcher.is_stopped():
            self._phases.append(_Phase(len(self._tokens)))

    def _look_for_entries(self) -> None:
        """Whether a call begins, or a thought."""
        for opening, closing in self._marks if len(self._phases) == 1 else ():
            if self._at_first(opening) is not None:
                self._phases.append(_Phase(len(self._tokens), closing=(closing,)))
                return
        for entry in self._entries:
            rest = self._at_first(entry.mark) if entry.first else self._behind(entry.mark)
            if rest is None:
                continue
            held = self._held(entry.matcher(), last=self._once or entry.first)
            if not rest or self._feed(held.matcher, rest):
                if held.numbers is not None:
                    held.numbers.read(rest)
                self._phases.append(held)
                return

    def _feed(self, matcher: Any, text: bytes) -> bool:
        tokens = self._vocabulary.llg(self._name).tokenize_bytes(text)
        return bool(matcher.try_consume_tokens(tokens) == len(tokens))

    def _at_first(self, mark: bytes) -> bytes | None:
        """What is behind ``mark`` where the answer begins with it, just now."""
        phase = self._phase
        count = len(self._tokens) - phase.start
        if count > len(mark) or any(one.matcher is not None for one in self._phases):
            return None
        text = b"".join(map(self._vocabulary.bytes_of, self._tokens[phase.start :])).lstrip()
        before = len(text) - len(self._vocabulary.bytes_of(self._tokens[-1]))
        return text[len(mark) :] if text.startswith(mark) and before < len(mark) else None

    def _behind(self, mark: bytes) -> bytes | None:
        """What the last token holds behind ``mark``, which it completes; None: it does not."""
        tail = self._tail(len(mark))
        last = len(self._vocabulary.bytes_of(self._tokens[-1])) if self._tokens else 0
        at = tail.find(mark, max(len(tail) - last - len(mark) + 1, 0))
        return None if at < 0 else tail[at + len(mark) :]

    def _tail(self, length: int) -> bytes:
        """The last text of the phase: what a mark of this length may have begun in."""
        tokens = self._tokens[max(self._phase.start, len(self._tokens) - length) :]
        return b"".join(map(self._vocabulary.bytes_of, tokens))

    def _not_next(self) -> list[int]:
        """Tokens that may not come next where no matcher holds the answer: those that would complete a mark
        and go on in a way that what follows the mark cannot; while it reasons, end tokens too."""
        if self._banned[0] != len(self._tokens):
            self._banned = len(self._tokens), self._find_banned()
        return self._banned[1]

    def _find_banned(self) -> list[int]:
        vocabulary = self._vocabulary
        if self._phase.closing:
            if self._matcher is None:
                return []
            banned = [token for token in vocabulary.end_ids if token < vocabulary.size]
            for mark in self._phase.closing:
                tail = self._tail(len(mark))
                banned += [token for token, rest in vocabulary.across(tail, mark) if rest.strip()]
            return banned
        return [
            token
            for entry in self._entries
            if not entry.first
            for token, rest in vocabulary.across(self._tail(len(entry.mark)), entry.mark)
            if not self._feed(entry.matcher().deep_copy(), rest)
        ]

    @property
    def _may_open(self) -> bool:
        """Whether the next token may open a block of reasoning."""
        return self._opening is not None and not self._tokens

    def _mask(self) -> NDArray[np.uint8]:
        """Which tokens the grammar allows next: bit i % 8 of byte i // 8 is token i's."""
        bits = self._phase.matcher.compute_bitmask()
        self._check(self._phase.matcher)
        return np.frombuffer(bits, np.uint8)

    def _check(self, matcher: Any) -> None:
        for one in matcher.alive if isinstance(matcher, Either) else [matcher]:
            # In both cases the matcher would allow an end token, as if the answer were whole.
            if one.is_error() or one.stop_reason() not in _GOING_ON:
                why = line(one.get_error() or one.stop_reason())
                raise RequestError(f"{self._name}: the answer cannot go on: {why}", "use another grammar")


def _counts(matcher: Any) -> bool:
    """Whether numbers stand as in JSON in what it holds, of an answer in which they may."""
    return not isinstance(matcher, Either) or matcher.counts


class _Numbers:
    """Reads JSON token by token, and counts the digits of the number in which it ends."""

    def __init__(self) -> None:
        self._states = [(0, False, False)]  # digits, in a string, behind a backslash: after each token

    @property
    def digits(self) -> int:
        return self._states[-1][0]

    def read(self, text: bytes) -> None:
        digits, inside, escaped = self._states[-1]
        for byte in text:
            if inside:
                inside, escaped = escaped or byte != 0x22, not escaped and byte == 0x5C
            elif 0x30 <= byte <= 0x39:
                digits += 1
            elif byte in b"eE" and digits:  # an exponent has two
                digits = MAX_DIGITS - 2
            elif byte not in b".+-":
                digits, inside = 0, byte == 0x22
        self._states.append((digits, inside, escaped))

    def undo(self, n: int) -> None:
        del self._states[len(self._states) - n :]
