"""The thirteen kinds: how many items of a kind make what text, what is asked, and what must be answered.

Settings are those of RULER's paper: needles by one key, by one of many, with several values, several asked
for; variables assigned along a chain; the most common of listed words, and of words drawn from Zipf's law;
questions over documents, of one fact and of two. The questions over documents are about people who do not
exist, since no set of questions may be shipped here; RULER's own are SQuAD's and HotpotQA's. Tokens of an
answer are as many as RULER has, but of vt, which has 30 there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from minicpm4.evals.ruler import words

_HOUSES = ("Mills", "Institute", "Works", "Bank")
_FAMILIES = ("the second of five children", "to a family of millers", "an only child")
_DOES, _THINGS = ("exports", "repairs", "collects"), ("clocks", "boats", "maps", "glass")


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """``text`` to read with the question at its end, the beginning of the answer, what it must contain."""

    text: str
    begin: str
    references: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """``make(rng, amount, haystack)``: a question whose text has ``amount`` items (sentences, keys, words or
    documents), at least ``least``; ``tokens`` of answer; ``any_one``: one reference is enough."""

    name: str
    make: Callable[[random.Random, int, Sequence[str]], Made]
    tokens: int
    least: int = 1
    any_one: bool = False


def _needles(
    rng: random.Random,
    amount: int,
    haystack: Sequence[str],
    *,
    hay: str,
    key: Callable[[random.Random], str] | None = None,
    value: Callable[[random.Random], str] = words.number,
    count: int = 1,
    values: int = 1,
    asked: int = 1,
) -> Made:
    """``count`` keys with ``values`` values each, hidden in ``amount`` sentences of noise, of text, or of
    other needles (``hay``); ``asked`` of the keys are asked for."""
    others = amount if hay == "needles" else 0
    names = [key(rng) for _ in range(count + others)] if key else words.keys(rng, count + others)
    sort = "identifier" if value is words.identifier else "number"
    facts = [(name, value(rng)) for name in names[:count] for _ in range(values)]
    lines = [f"The secret {sort} of {name} is {one}." for name, one in facts]
    if hay == "needles":
        body = [f"The secret {sort} of {name} is {value(rng)}." for name in names[count:]]
    else:
        source = words.NOISE if hay == "noise" else haystack
        body = [source[i % len(source)] for i in range(amount)]
    for line in lines:
        body.insert(rng.randint(0, len(body)), line)
    wanted = rng.sample(names[:count], asked)
    asked_for = " and of ".join(wanted)
    many = values > 1 or asked > 1
    end = f"What {'are all' if many else 'is'} the secret {sort}{'s' if many else ''} of {asked_for}?"
    return Made(
        text=f"Secret {sort}s are hidden in the text below. Remember them, they are asked for at its end.\n\n"
        f"{' '.join(body)}\n\n{end}",
        begin=f"The secret {sort}{'s' if many else ''} of {asked_for} {'are' if many else 'is'}",
        references=tuple(one for name, one in facts if name in wanted),
    )


def _variables(rng: random.Random, amount: int, haystack: Sequence[str], *, hops: int = 4) -> Made:
    """A chain of assignments, in order, in ``amount`` sentences of noise: all that hold its value."""
    names = [name.upper() for name in words.made_up(rng, hops + 1)]
    value = str(rng.randint(10_000, 99_999))
    lines = [f"VAR {names[0]} = {value}."]
    lines += [f"VAR {name} = VAR {before}." for before, name in pairwise(names)]
    body = [words.NOISE[i % len(words.NOISE)] for i in range(amount)]
    places = sorted(rng.choices(range(amount + 1), k=len(lines)), reverse=True)
    for place, line in zip(places, lines[::-1], strict=True):
        body.insert(place, line)
    return Made(
        text="Variables are set in the text below. Follow which hold what value.\n\n"
        f"{' '.join(body)}\n\nWhich variables hold the value {value}? There are {len(names)} of them.",
        begin=f"The variables that hold the value {value} are",
        references=tuple(names),
    )


def _common(rng: random.Random, amount: int, haystack: Sequence[str], *, common: int = 10) -> Made:
    """Ten words that are listed 30 times, among ``amount`` words that are listed 3 times."""
    found = words.made_up(rng, common + amount, 3)
    often, seldom = found[:common], found[common:]
    listed = [*often * 30, *seldom * 3]
    rng.shuffle(listed)
    body = " ".join(f"{i}. {word}" for i, word in enumerate(listed, 1))
    return Made(
        text=f"Below is a numbered list of words, some of which come far more often.\n\n{body}\n\n"
        f"Which {common} words are the most common of the list?",
        begin=f"The {common} most common words are",
        references=tuple(often),
    )


def _frequent(rng: random.Random, amount: int, haystack: Sequence[str], *, alpha: float = 2.0) -> Made:
    """``amount`` words drawn by Zipf's law: the three most frequent but for the dots, which are the first."""
    known = words.made_up(rng, 2000, 3)
    weights = [1 / (rank + 1) ** alpha for rank in range(len(known) + 1)]
    drawn = rng.choices(["...", *known], weights, k=amount)
    drawn += known[:3] * 2  # however few are drawn, these three are the most frequent
    order = [word for word, _ in Counter(drawn).most_common() if word != "..."]
    drawn += [word for rank, word in enumerate(order[:3]) for _ in range(3 - rank)]
    rng.shuffle(drawn)
    return Made(
        text="Count the words of the text below. Dots stand for no word.\n\n"
        f"{' '.join(drawn)}\n\nWhich are the three most frequent words of the text?",
        begin="The three most frequent words are",
        references=tuple(order[:3]),
    )


def _documents(rng: random.Random, amount: int, haystack: Sequence[str], *, hops: int) -> Made:
    """``amount`` documents about people and where they work; one fact is asked for, or one behind another."""
    names = [word.title() for word in words.made_up(rng, 3 * amount)]
    people = [f"{first} {last}" for first, last in zip(names[:amount], names[amount:], strict=False)]
    houses = [f"{word} {rng.choice(_HOUSES)}" for word in names[2 * amount :]]
    towns = [word.title() for word in words.made_up(rng, 2 * amount, 3)]
    pages = []
    for person, house, born, seat in zip(people, houses, towns[::2], towns[1::2], strict=True):
        pages += [
            f"{person} was born in {born} in {rng.randint(1850, 1990)}, {rng.choice(_FAMILIES)}. "
            f"{person.split()[0]} has worked for {house} since school and keeps bees.",
            f"{house} was founded in {rng.randint(1700, 1849)} and has its seat in {seat}. "
            f"It {rng.choice(_DOES)} {rng.choice(_THINGS)}.",
        ]
    rng.shuffle(pages)
    body = "\n\n".join(f"Document {i}: {page}" for i, page in enumerate(pages, 1))
    which = rng.randrange(amount)
    asked = (
        f"In which town was {people[which]} born?"
        if hops == 1
        else f"In which town has the employer of {people[which]} its seat?"
    )
    return Made(
        text=f"Answer the question by the documents below, in a few words.\n\n{body}\n\nQuestion: {asked}",
        begin="Answer:",
        references=(towns[2 * which + (hops - 1)],),
    )


_LONG = words.identifier
KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="niah_single_1", make=partial(_needles, hay="noise"), tokens=128),
        Kind(name="niah_single_2", make=partial(_needles, hay="text"), tokens=128),
        Kind(name="niah_single_3", make=partial(_needles, hay="text", value=_LONG), tokens=128),
        Kind(name="niah_multikey_1", make=partial(_needles, hay="text", count=4), tokens=128),
        Kind(name="niah_multikey_2", make=partial(_needles, hay="needles"), tokens=128),
        Kind(
            name="niah_multikey_3", make=partial(_needles, hay="needles", key=_LONG, value=_LONG), tokens=128
        ),
        Kind(name="niah_multivalue", make=partial(_needles, hay="text", values=4), tokens=128),
        Kind(name="niah_multiquery", make=partial(_needles, hay="text", count=4, asked=4), tokens=128),
        Kind(name="vt", make=_variables, tokens=48),
        Kind(name="cwe", make=_common, tokens=120),
        Kind(name="fwe", make=_frequent, tokens=50, least=20),
        Kind(name="qa_1", make=partial(_documents, hops=1), tokens=32, any_one=True),
        Kind(name="qa_2", make=partial(_documents, hops=2), tokens=32, any_one=True),
    )
}
