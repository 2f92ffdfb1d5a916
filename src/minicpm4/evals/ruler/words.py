"""Words, names and numbers that questions are made of."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Sequence

from minicpm4.data.needles import ADJECTIVES, KEYS, key_name

# What stands around a needle where the text is to be no text (RULER's "noise").
NOISE = (
    "The rain has stopped.",
    "The road is wet.",
    "A door closes.",
    "Nobody is there.",
    "The rain comes back.",
)
_ONSETS = "b br d dr f fl g gr h j k kl l m n p pr r s st t tr v z".split()  # noqa: SIM905
_VOWELS = "a e i o u ai ea oa".split()  # noqa: SIM905
_CODAS = ["", "", "l", "m", "n", "r", "s", "t", "nd", "rk"]


def keys(rng: random.Random, count: int) -> list[str]:
    """Different keys of two words, such as ``amber-falcon``; of three where there are not as many of two."""
    words, there = 2, KEYS
    while there < count:
        words, there = words + 1, there * len(ADJECTIVES)
    return [key_name(one, "-", words) for one in rng.sample(range(there), count)]


def number(rng: random.Random) -> str:
    """Seven digits."""
    return str(rng.randint(1_000_000, 9_999_999))


def identifier(rng: random.Random) -> str:
    """A UUID."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def made_up(rng: random.Random, count: int, syllables: int = 2, known: Sequence[str] = ()) -> list[str]:
    """``count`` different words that no language has, none of them ``known``."""
    found: dict[str, None] = {}
    taken = set(known)
    while len(found) < count:
        parts = (rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))
        word = "".join(parts)
        if word not in taken:
            found[word] = None
    return list(found)


def sentences(text: str) -> list[str]:
    """``text`` cut after sentences, white space collapsed."""
    return [one for one in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if one]
