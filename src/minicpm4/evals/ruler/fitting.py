"""Questions of a wanted length in a model's own tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from minicpm4.errors import ConfigError
from minicpm4.evals.ruler.kinds import KINDS, Kind, Made

__all__ = ["Maker", "Sample"]

_MOST = 1 << 22  # items


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Question ``index`` of a kind at ``length``: ``prompt``, token ids, ends where the answer goes on; with
    ``tokens`` of answer it takes ``length`` at most."""

    kind: str
    length: int
    index: int
    prompt: tuple[int, ...]
    tokens: int
    references: tuple[str, ...]


class Maker:
    """``encode(text, begin)``: the prompt's token ids of a question and of the beginning of its answer, with
    whatever template; ``haystack``: sentences of the text. Sample i of a kind and a length is a function of
    ``seed`` alone."""

    def __init__(
        self, encode: Callable[[str, str], list[int]], haystack: Sequence[str], *, seed: int = 0
    ) -> None:
        self._encode, self._haystack, self._seed = encode, haystack, seed
        if not haystack:
            raise ConfigError("the text that questions are hidden in is empty", "give another --text")

    def sample(self, kind: Kind, length: int, index: int) -> Sample:
        """The longest one that fits. Raises ConfigError where not even the shortest does."""
        room = length - kind.tokens
        made = partial(self._made, kind, length, index)
        best = self.shortest(kind, length, index)
        low, high = kind.least, self._beyond(made, kind.least, len(best[1]), room)
        while high - low > max(1, low // 200):  # half a percent of its items short at most, or one item
            middle = (low + high) // 2
            tried = made(middle)
            if len(tried[1]) <= room:
                low, best = middle, tried
            else:
                high = middle
        return Sample(
            kind=kind.name,
            length=length,
            index=index,
            prompt=tuple(best[1]),
            tokens=kind.tokens,
            references=best[0].references,
        )

    def shortest(self, kind: Kind, length: int, index: int = 0) -> tuple[Made, list[int]]:
        """The least that a question of the kind is. Raises ConfigError where that does not fit."""
        found = self._made(kind, length, index, kind.least)
        least = len(found[1]) + kind.tokens
        if least > length:
            raise ConfigError(
                f"{length:,} tokens are too few for {kind.name}: its shortest question takes {least:,}",
                "give a greater length, or leave the kind out",
            )
        return found

    def _made(self, kind: Kind, length: int, index: int, amount: int) -> tuple[Made, list[int]]:
        rng = random.Random(f"{self._seed} {kind.name} {length} {index}")
        start = rng.randrange(len(self._haystack))
        found = kind.make(rng, amount, [*self._haystack[start:], *self._haystack[:start]])
        return found, self._encode(found.text, found.begin)

    def _beyond(self, made: Callable[[int], tuple[Made, list[int]]], least: int, size: int, room: int) -> int:
        """An amount that does not fit."""
        amount = least
        while size <= room and amount < _MOST:
            # Items are alike, so the length tells how many there will be, give or take.
            amount = max(amount + 1, min(2 * amount, int(1.1 * amount * room / max(1, size)) + 1))
            size = len(made(amount)[1])
        return amount


def check_kinds(names: Sequence[str]) -> list[Kind]:
    """Kinds by name, each once. Raises ConfigError."""
    for name in names:
        if name not in KINDS:
            raise ConfigError(f"{name!r} is no kind of question", f"there are {', '.join(KINDS)}")
    return [KINDS[name] for name in dict.fromkeys(names)]
