"""How many drafts a step checks, by what they gain in tokens a second; none is one of the choices.

A row more in a step takes time in which tokens could have been written without drafts. That is measured: what
a step takes without drafts, by how many sequences it decodes, and what each draft adds, the drafter's own
time included. A draft pays where the chance that it becomes text is worth more than that time. Chances are
the drafter's own, corrected by how those of the same sequence have fared.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul

from minicpm4.engine.drafter import Guess
from minicpm4.engine.sequence import MAX_DRAFTS, Drafts

BINS = 10
PRIOR = 4.0  # drafts as many as which a drafter's own chance weighs beside those that were seen
PLAIN_EVERY = 64  # steps, after which one without drafts tells anew what that takes
FIRST_PLAIN = 2  # steps without drafts before any with, of each number of sequences
REST = 8  # steps without drafts where they do not pay, at first; doubled each time, up to
MOST_REST = 512
_FIRST_ROW = 0.35  # times a step without drafts, what a draft adds before it was measured
TRIAL = 2  # drafts at a time, of a drafter whose guesses take time, before that was measured
_SURE = 8.0  # drafts squared, as which this weighs beside what was measured
_KEPT = 0.97  # what an earlier measurement weighs after each
_FADING = 0.995  # the same, where no draft was checked
_NEW = 0.1  # weight of the newest


class Costs:
    """Seconds of steps that only decode: ``plain`` ones by their number of sequences, and of each draft more
    as a part of those."""

    def __init__(self) -> None:
        self._plain: dict[int, tuple[float, int, int]] = {}  # seconds, how many, and in which step the last
        self._rows: dict[int, tuple[float, float]] = {}  # sums of drafts x seconds more, of drafts squared
        self._steps = 0

    def wants_plain(self, sequences: int) -> bool:
        """Whether a step without drafts is to tell what it takes."""
        _, count, last = self._plain.get(sequences, (0.0, 0, 0))
        return count < FIRST_PLAIN or self._steps - last >= PLAIN_EVERY

    def row(self, sequences: int) -> float:
        """What a draft adds to a step, in steps without drafts."""
        near = min(self._rows, key=lambda known: abs(known - sequences), default=None)
        seen, squares = (0.0, 0.0) if near is None else self._rows[near]
        return max((seen + _SURE * _FIRST_ROW) / (squares + _SURE), 0.01)

    def knows(self, sequences: int) -> bool:
        """Whether what a draft adds has been measured for about so many."""
        return any(abs(known - sequences) <= sequences // 2 for known in self._rows)

    def note(self, sequences: int, drafts: int, seconds: float) -> None:
        """A step that decoded so many sequences with so many drafts took so long."""
        self._steps += 1
        known, count, _ = self._plain.get(sequences, (seconds, 0, 0))
        if not drafts:
            seconds = min(seconds, 2 * known)  # what took longer was held up by something
            # Of the first ones the fastest: memory was touched for the first time.
            mean = min(known, seconds) if count < FIRST_PLAIN else known + _NEW * (seconds - known)
            self._plain[sequences] = mean, count + 1, self._steps
        elif count:
            more = min(seconds / known - 1, 6 * drafts * self.row(sequences))
            seen, squares = self._rows.get(sequences, (0.0, 0.0))
            self._rows[sequences] = _KEPT * seen + drafts * more, _KEPT * squares + drafts * drafts


@dataclass(slots=True)
class Record:
    """How a sequence's drafts have fared: by their chances as its drafter saw them, how many there were and
    how many were right; and what they have gained a step, in tokens, less what they cost."""

    tried: list[float] = field(default_factory=lambda: [0.0] * BINS)
    right: list[float] = field(default_factory=lambda: [0.0] * BINS)
    gain: float = 0.5
    resting: int = 0
    rest: int = REST

    def chance(self, seen: float) -> float:
        """A drafter's chance, corrected."""
        i = min(int(seen * BINS), BINS - 1)
        return (PRIOR * seen + self.right[i]) / (PRIOR + self.tried[i])

    def note(self, guess: Guess, drafts: Drafts, path: Items[int], price: float) -> None:
        """The first of a guess were checked; these were accepted. ``price``: of each, in tokens."""
        reached = {-1, *path}
        for i, parent in enumerate(drafts.parents):
            if parent in reached:
                at = min(int(guess.chances[i] * BINS), BINS - 1)
                self.tried[at] = _KEPT * self.tried[at] + 1
                self.right[at] = _KEPT * self.right[at] + (i in reached)
        self._gained(len(path) - price * len(drafts))

    def left_out(self, price: float) -> None:
        """None of a guess was worth checking; it has cost ``price`` tokens all the same. What was seen long
        ago counts less and less: the text may have come to where guesses are better."""
        self.tried = [_FADING * count for count in self.tried]
        self.right = [_FADING * count for count in self.right]
        if price:
            self._gained(-price)

    def _gained(self, tokens: float) -> None:
        self.gain += _NEW * (tokens - self.gain)
        if self.gain < 0:
            self.resting, self.rest, self.gain = self.rest, min(2 * self.rest, MOST_REST), 0.2
        elif self.gain > 0.5:
            self.rest = REST


def worthwhile(chances: Items[Items[float]], sequences: int, row: float, room: int) -> list[list[int]]:
    """Of each sequence's drafts, whose ``chances`` to become text are given, those that are worth their
    rows, ``room`` at most together: those are likeliest that bring most, each only where the step brings
    more tokens a second with it than without."""
    every = sorted(
        ((-chance, i, node) for i, tree in enumerate(chances) for node, chance in enumerate(tree)),
    )
    tokens, seconds = float(sequences), 1.0
    kept: list[list[int]] = [[] for _ in chances]
    for negative, i, node in every[: max(room, 0)]:
        if -negative <= row * tokens / seconds:
            break
        tokens, seconds = tokens - negative, seconds + row
        kept[i].append(node)
    return [sorted(nodes) for nodes in kept]


def reached(drafts: Drafts, chances: Iterable[float]) -> list[float]:
    """The chance of each draft to become text, from those given what it follows: none above its parent's."""
    found: list[float] = []
    for parent, chance in zip(drafts.parents, chances, strict=True):
        found.append(chance * (found[parent] if parent >= 0 else 1.0))
    return found


def product(chances: Iterable[float]) -> float:
    """The chance that all of a chain become text."""
    return [1.0, *accumulate(chances, mul)][-1]


def most_rows(sequences: int, rows: int) -> int:
    """Drafts beside ``sequences`` rows for which a step has room."""
    return min(max(rows - sequences, 0), MAX_DRAFTS)
