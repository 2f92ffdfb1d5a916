"""Synthetic retrieval: short facts (needles) hidden in real text, asked for at its end.

A document is text from a packed set in which each needle, ``The code of the amber falcon is 4821.``, stands
on a line of its own at a given depth; after the text come a question and its answer, which is the needle's
line again. Only the answers are learnt: writing the whole line makes a small model look it up (finding the
key that a question names, then going on as there), where the value alone gives it a few tokens a document.
Answer and needle are encoded in the same pieces, so they share their tokens. Document i is a pure function of
the seed and i. For training (``documents``) and for grids of evaluation (``grid``).
"""

# ruff: noqa: SIM905  (words in a row are read faster than a column of strings)

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minicpm4.config.strict import require
from minicpm4.data.shards import Document, Documents
from minicpm4.text import Tokenizer

__all__ = ["Needle", "NeedleDocument", "NeedleMaker", "check_counts", "key_name"]

ADJECTIVES = (
    "amber ancient bitter blue bold brave bright broken calm clever crimson dark distant eager early empty "
    "fading gentle golden green grey hidden hollow icy idle ivory kind lazy little lonely loud lucky mellow "
    "misty noble odd old pale patient plain proud purple quick quiet rapid red restless royal rusty scarlet "
    "sharp shy silent silver simple sleepy slow small smooth solemn steady stormy sunny swift tall"
).split()
NOUNS = (
    "anchor arrow badger barrel beacon bell bridge candle canyon castle cloud comet compass crow desert "
    "dolphin eagle ember falcon feather fern forest fountain fox garden glacier hammer harbor hawk heron "
    "island jaguar kettle lantern ladder lion maple marble meadow mirror mountain oak ocean orchid otter "
    "owl panther pebble pine planet rabbit raven river saddle salmon shadow sparrow spider thunder tiger "
    "tower turtle valley walrus"
).split()
KEYS = len(ADJECTIVES) * len(NOUNS)


def key_name(number: int, apart: str = " ", words: int = 2) -> str:
    """The key of a number: of two words, an adjective and a noun, below KEYS; each adjective more is for
    len(ADJECTIVES) times as many."""
    number, noun = divmod(number, len(NOUNS))
    parts = [NOUNS[noun]]
    for _ in range(words - 1):
        number, adjective = divmod(number, len(ADJECTIVES))
        parts.append(ADJECTIVES[adjective])
    return apart.join(reversed(parts))


@dataclass(frozen=True, kw_only=True, slots=True)
class Needle:
    """``The code of the KEY is VALUE.``: its tokens are ``start`` to ``stop`` - 1 of the document; ``depth``:
    the share of the text before it."""

    key: str
    value: str
    start: int
    stop: int
    depth: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NeedleDocument:
    """``tokens`` (n,); ``learn`` (n,): the answers' tokens; ``prompt``: tokens before the first value;
    ``asked``: the needles that are asked for, in this order."""

    tokens: NDArray[np.int64]
    learn: NDArray[np.bool_]
    needles: tuple[Needle, ...]
    asked: tuple[Needle, ...]
    prompt: int

    def document(self) -> Document:
        """For a packed set."""
        return Document(tokens=self.tokens, learn=self.learn)


def check_counts(needles: int, queries: int, digits: int) -> None:
    """Raise ConfigError for numbers that NeedleMaker does not take."""
    require(1 <= queries <= needles <= 64, f"{queries} of {needles} needles cannot be asked for")
    require(1 <= digits <= 18, f"values of {digits} digits are out of range", "use 1 to 18")


class NeedleMaker:
    """``haystack``: a set packed with ``tokenizer``. ``needles`` in each document, of which ``queries`` are
    asked for; values have ``digits`` digits. Raises ConfigError."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        haystack: Documents,
        *,
        seed: int = 0,
        needles: int = 1,
        queries: int = 1,
        digits: int = 4,
    ) -> None:
        require(len(haystack) > 0, "the text to hide needles in is empty", "pack some text first")
        check_counts(needles, queries, digits)
        self._tokenizer, self._haystack, self._seed = tokenizer, haystack, seed
        self._needles, self._queries, self._digits = needles, queries, digits
        size = max(haystack.vocab_size, tokenizer.vocab_size)
        ends = [tokenizer.token_bytes(i) for i in range(size)]
        self._line = np.array([data.endswith(b"\n") for data in ends])
        self._stop = np.array([data.endswith((b".", b"!", b"?")) for data in ends])
        self._space = np.array([data.startswith(b" ") for data in ends])
        # Before a token that begins with a character's first byte, text is whole characters.
        self._begin = np.array([data != b"" and not 0x80 <= data[0] < 0xC0 for data in ends])
        self._gap = np.asarray(tokenizer.encode_after("\n\n"), np.int64)
        marks = {*tokenizer.eos_token_ids, *tokenizer.prefix_ids}
        self._mark = np.array([i in marks or tokenizer.is_special(i) for i in range(size)])

    def documents(self, count: int, lengths: Sequence[int]) -> Iterator[Document]:
        """``count`` documents, the lengths in turn, each needle at a depth of its own."""
        for index in range(count):
            yield self.make(index, lengths[index % len(lengths)]).document()

    def grid(
        self, lengths: Sequence[int], depths: Sequence[float], each: int
    ) -> Iterator[tuple[int, float, NeedleDocument]]:
        """(length, depth, document): ``each`` documents for every pair, the first needle at that depth."""
        index = 1 << 40  # none of the training documents
        for length in lengths:
            for depth in depths:
                for _ in range(each):
                    yield length, depth, self.make(index, length, depth)
                    index += 1

    def make(self, index: int, length: int, depth: float | None = None) -> NeedleDocument:
        """Document ``index`` of at most ``length`` tokens, less by a few at most. The first needle is asked
        for, and is at ``depth`` (0 to 1) where that is given. Raises ConfigError where the length is too
        short."""
        rng = np.random.default_rng([self._seed, index, length])
        names = [key_name(k) for k in rng.choice(KEYS, self._needles, replace=False).tolist()]
        values = [str(v) for v in rng.integers(10 ** (self._digits - 1), 10**self._digits, self._needles)]
        depths = rng.random(self._needles)
        if depth is not None:
            depths[0] = depth
        facts = [self._fact(k, v) for k, v in zip(names, values, strict=True)]
        order = [0, *(1 + rng.permutation(self._needles - 1)).tolist()][: self._queries]
        rng.shuffle(order)
        tail = [self._query(names[i], values[i]) for i in order]
        before, end = list(self._tokenizer.prefix_ids), list(self._tokenizer.eos_token_ids[:1])
        room = length - sum(map(len, (before, end, *facts, *(part for asked in tail for part in asked))))
        require(
            room >= 16,
            f"{length} tokens are too few for {self._needles} needles",
            f"they and their questions alone take {length - room}",
        )
        text = self._text(room, rng)
        known = list(zip(names, values, depths.tolist(), strict=True))
        body, needles = self._hide(text, facts, known, len(before))
        tokens, learn = [*before, *body], [False] * (len(before) + len(body))
        prompt = len(tokens) + len(tail[0][0]) + len(tail[0][1])
        for question, *answer in tail:
            said = [token for part in answer for token in part]
            tokens += [*question, *said]
            learn += [False] * len(question) + [True] * len(said)
        return NeedleDocument(
            tokens=np.asarray([*tokens, *end], np.int64),
            learn=np.asarray([*learn, *([False] * len(end))], bool),
            needles=tuple(needles),
            asked=tuple(needles[i] for i in order),
            prompt=prompt,
        )

    def _fact(self, key: str, value: str) -> list[int]:
        parts = (self._tokenizer.encode_after("\n"), *self._answer(key, value))
        return [token for part in parts for token in part]

    def _answer(self, key: str, value: str) -> tuple[list[int], list[int], list[int]]:
        encode = self._tokenizer.encode_after
        return encode(f"The code of the {key} is"), encode(f" {value}"), encode(".\n")

    def _query(self, key: str, value: str) -> tuple[list[int], list[int], list[int], list[int]]:
        """Question, beginning of the answer, value, end."""
        asked = (f"\nWhat is the code of the {key}?", "\n")
        question = [token for part in asked for token in self._tokenizer.encode_after(part)]
        return question, *self._answer(key, value)

    def _text(self, room: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """About ``room`` tokens of documents from a random one on, ending with a whole character."""
        parts: list[NDArray[np.int64]] = []
        size = 0
        document = int(rng.integers(len(self._haystack)))
        for _ in range(room + 1):
            tokens = self._haystack.read(document, 0, room + 8)[0].astype(np.int64)
            tokens = tokens[~self._mark[tokens]]
            added = [self._gap, tokens] if parts else [tokens]
            parts += added
            size += sum(map(len, added))
            if size >= room:
                break
            document = (document + 1) % len(self._haystack)
        text = np.concatenate(parts)
        require(len(text) >= 8, "the text to hide needles in is too short", "pack more text")
        cut = min(room, len(text))
        while cut < len(text) and not self._begin[text[cut]]:
            cut -= 1
        return text[:cut]

    def _hide(
        self, text: NDArray[np.int64], facts: list[list[int]], known: list[tuple[str, str, float]], first: int
    ) -> tuple[list[int], list[Needle]]:
        """``text`` with all facts in it, and where they are in a document with ``first`` tokens before."""
        places = [self._place(text, depth) for _, _, depth in known]
        body: list[int] = []
        needles: dict[int, Needle] = {}
        at = 0
        for i in sorted(range(len(facts)), key=lambda i: (places[i], i)):
            body += text[at : places[i]].tolist()
            start, at = first + len(body), places[i]
            body += facts[i]
            key, value, _ = known[i]
            share = places[i] / len(text)
            needles[i] = Needle(key=key, value=value, start=start, stop=start + len(facts[i]), depth=share)
        body += text[at:].tolist()
        return body, [needles[i] for i in range(len(facts))]

    def _place(self, text: NDArray[np.int64], depth: float) -> int:
        """The place between tokens nearest to ``depth`` at a line's end, if there is one within a fiftieth of
        the text, else at a sentence's, else before a space, else between two characters."""
        wanted = round(depth * len(text))
        if wanted in (0, len(text)):
            return wanted
        near = max(8, len(text) // 50)
        low, high = max(1, wanted - near), min(len(text) - 1, wanted + near)
        before, after = text[low - 1 : high], text[low : high + 1]
        for fits in (
            self._line[before],
            self._stop[before] & self._space[after],
            self._space[after],
            self._begin[after],
        ):
            places = low + np.flatnonzero(fits)
            if len(places):
                return int(places[np.argmin(np.abs(places - wanted))])
        return len(text) if wanted * 2 > len(text) else 0
