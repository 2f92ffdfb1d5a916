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


MOST_SHARED = 1 << 20  # tokens of ended sequences that are kept, where they are
BYTES_A_TOKEN = 240  # at most, of the index of a text; measured, 170 to 230
SHARED_BYTES = MOST_SHARED * (BYTES_A_TOKEN + 40)  # with the tokens, which sequences no longer hold
_END = -1  # between two of them


class SuffixDrafter:
    """A Drafter that knows of each sequence its own tokens, prompt and answer, and nothing of others.

    ``shared``: of sequences that have ended, too, up to ``most`` tokens, the oldest given up first. Then what
    one has written is a guess for another, and whoever can measure time may learn of it.
    """

    is_free = True
    hidden: tuple[int, ...] = ()

    def __init__(self, *, shared: bool = False, most: int = MOST_SHARED) -> None:
        self._texts: dict[tuple[int, int], _Text] = {}
        self._shared, self._most = shared, most
        self._ended: list[_Text] = []  # the older half, the newer

    def guess(self, wishes: Items[Wish]) -> list[Guess | None]:
        """See Drafter."""
        return [self._guess(wish) for wish in wishes]

    def _guess(self, wish: Wish) -> Guess | None:
        tokens = wish.sequence.tokens
        text = self._texts.get(wish.sequence.order)
        if text is None:
            text = self._texts[wish.sequence.order] = _Text(tokens)
        text.read()
        # The sequence's own text first: others' where they are more alike.
        best, place, alike = text, *text.longest(tokens)
        for ended in reversed(self._ended):
            other = ended.longest(tokens)
            if other[1] > alike:
                best, place, alike = ended, *other
        if not alike:
            return None
        drafts = best.follows(place, wish.most)
        chances = tuple(_CHANCE[min(alike + i, LONGEST)] for i in range(len(drafts)))
        return Guess(Drafts.chain(drafts), chances) if drafts else None

    def see(self, sequence: Sequence, start: int, states: Mapping[int, Array]) -> None:
        """See Drafter. It asks for none."""

    def drop(self, sequence: Sequence) -> None:
        """See Drafter."""
        self._texts.pop(sequence.order, None)
        if self._shared:
            self._keep(sequence.tokens[-self._most // 2 :])

    def start_over(self) -> None:
        """See Drafter."""
        self._texts.clear()
        self._ended.clear()

    def _keep(self, tokens: list[int]) -> None:
        """Note the text of a sequence that has ended."""
        if not self._ended or len(self._ended[-1].tokens) + len(tokens) >= self._most // 2:
            self._ended = [*self._ended[-1:], _Text([])]
        newest = self._ended[-1]
        newest.tokens += [*tokens, _END]
        newest.read()


class _Text:
    """Where the last few tokens of a text have been in ``tokens``: of each length the last place behind them,
    and from there on the place before it. It takes BYTES_A_TOKEN at most."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self._done = 0
        self._last: list[dict[int, int]] = [{} for _ in LENGTHS]
        self._before = [array("i") for _ in LENGTHS]

    def read(self) -> None:
        """Note the places in what is new. The end is none yet: nothing is behind it."""
        tokens = self.tokens
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
        """The place whose tokens before it are most like the last ones of ``tokens``, the latest of several,
        and in how many they are alike; 0 where there is none."""
        for length, last, before in zip(LENGTHS, self._last, self._before, strict=True):
            best = found = 0
            place = last.get(hash(tuple(tokens[-length:])), 0)
            for _ in range(PLACES):
                if not place or found == LONGEST:
                    break
                alike = _alike(self.tokens, place, tokens)
                if alike > found:
                    best, found = place, alike
                place = before[place]
            if found >= length:
                return best, found
        return 0, 0

    def follows(self, place: int, count: int) -> list[int]:
        """The ``count`` tokens from a place on; past the end it goes on with these themselves."""
        found: list[int] = []
        for i in range(place, place + count):
            token = self.tokens[i] if i < len(self.tokens) else found[i - len(self.tokens)]
            if token == _END:
                break
            found.append(token)
        return found


def _alike(text: list[int], place: int, tokens: list[int]) -> int:
    """How many tokens before a place of ``text`` are the last ones of ``tokens``."""
    end, most = len(tokens), min(place, len(tokens), LONGEST)
    for i in range(1, most + 1):
        if text[place - i] != tokens[end - i]:
            return i - 1
    return most
