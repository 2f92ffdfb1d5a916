"""The suffix drafter: a text that has come to where it has been before goes on as it did then.

It costs next to nothing, needs no second model, and is right where answers quote, edit, translate names or
repeat code. Integers only.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from collections.abc import Sequence as Items

from minicpm4.engine.drafter import Array, Guess, Wish
from minicpm4.engine.sequence import Drafts, Sequence

LENGTHS = (4, 2)  # tokens by which earlier places are looked for, the longer ones first
PLACES = 16  # that are compared, the latest ones
LONGEST = 32  # tokens that are compared of each
# How likely the next token is the one behind an earlier place that is alike in so many tokens, before a
# sequence has shown how it is with its own.
CHANCES = {2: 0.3, 3: 0.4, 4: 0.5, 6: 0.6, 8: 0.7, 12: 0.8, 16: 0.85, 24: 0.9}
_CHANCE = [max([0.0, *(p for length, p in CHANCES.items() if length <= n)]) for n in range(LONGEST + 1)]


class SuffixDrafter:
    """A Drafter that knows of each sequence its own tokens, prompt and answer, and nothing of others."""

    is_free = True
    hidden: tuple[int, ...] = ()

    def __init__(self) -> None:
        self._texts: dict[tuple[int, int], _Text] = {}

    def guess(self, wishes: Items[Wish]) -> list[Guess | None]:
        """See Drafter."""
        return [self._guess(wish) for wish in wishes]

    def _guess(self, wish: Wish) -> Guess | None:
        tokens = wish.sequence.tokens
        text = self._texts.get(wish.sequence.order)
        if text is None:
            text = self._texts[wish.sequence.order] = _Text()
        text.read(tokens)
        place, alike = text.longest(tokens)
        if not alike:
            return None
        drafts: list[int] = []
        for i in range(place, place + wish.most):  # past its end the text goes on with the drafts themselves
            drafts.append(tokens[i] if i < len(tokens) else drafts[i - len(tokens)])
        chances = tuple(_CHANCE[min(alike + i, LONGEST)] for i in range(len(drafts)))
        return Guess(Drafts.chain(drafts), chances)

    def see(self, sequence: Sequence, start: int, states: Mapping[int, Array]) -> None:
        """See Drafter. It asks for none."""

    def drop(self, sequence: Sequence) -> None:
        """See Drafter."""
        self._texts.pop(sequence.order, None)

    def start_over(self) -> None:
        """See Drafter."""
        self._texts.clear()


class _Text:
    """Where the last few tokens of a text have been before: of each length the last place behind them, and
    from there on the place before it. About 0.2 kB a token."""

    def __init__(self) -> None:
        self._done = 0
        self._last: list[dict[int, int]] = [{} for _ in LENGTHS]
        self._before = [array("i") for _ in LENGTHS]

    def read(self, tokens: list[int]) -> None:
        """Note the places in what is new of the text. Its end is none yet: nothing is behind it."""
        for place in range(self._done, len(tokens)):
            for length, last, before in zip(LENGTHS, self._last, self._before, strict=True):
                if place < length:
                    before.append(0)
                    continue
                key = hash(tuple(tokens[place - length : place]))
                before.append(last.get(key, 0))
                last[key] = place
        self._done = len(tokens)

    def longest(self, tokens: list[int]) -> tuple[int, int]:
        """The place whose tokens before it are most like the text's last ones, the latest of several, and in
        how many they are alike; 0 where there is none."""
        for length, last, before in zip(LENGTHS, self._last, self._before, strict=True):
            best = found = 0
            place = last.get(hash(tuple(tokens[-length:])), 0)
            for _ in range(PLACES):
                if not place or found == LONGEST:
                    break
                alike = _alike(tokens, place)
                if alike > found:
                    best, found = place, alike
                place = before[place]
            if found >= length:
                return best, found
        return 0, 0


def _alike(tokens: list[int], place: int) -> int:
    """How many tokens before a place are those before the text's end."""
    end, most = len(tokens), min(place, LONGEST)
    for i in range(1, most + 1):
        if tokens[place - i] != tokens[end - i]:
            return i - 1
    return most
