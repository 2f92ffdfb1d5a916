"""Decoding token by token: text as soon as it is certain, and stops at the exact character.

What is emitted is never taken back. Held back are the bytes of an unfinished character and text
that may turn out to be the beginning of a stop string. The cost of a token depends on its own
length and the number of stop strings, not on the output so far.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from minicpm4.errors import Minicpm4Error, RequestError

if TYPE_CHECKING:
    from minicpm4.text.tokenizer import Tokenizer

__all__ = ["NoText", "StopMatcher", "StreamDecoder", "TextStream", "check_stops", "cut_at_stop"]

MAX_STOPS = 64
MAX_STOP_CHARS = 4096


class TextStream(Protocol):
    """Turns the tokens of one sample into text and says where it stops."""

    @property
    def stopped(self) -> bool: ...

    @property
    def matched(self) -> str | int | None: ...

    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


def check_stops(stops: str | Sequence[str], refusal: type[Minicpm4Error] = RequestError) -> tuple[str, ...]:
    """Stop strings, or the one that was given. Raises ``refusal`` for what is none, too long, or too many."""
    if isinstance(stops, str):
        stops = (stops,)
    if not isinstance(stops, Sequence):
        raise refusal(f"stop = {stops!r:.40} is not a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise refusal(f"{len(stops)} stop strings were given, the limit is {MAX_STOPS}")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARS:
            remedy = f"stop strings have 1 to {MAX_STOP_CHARS} characters"
            raise refusal(f"stop string {stop!r:.40} is not usable", remedy)
    return tuple(stops)


class NoText:
    """For checkpoints without a tokenizer: no text, but the same end tokens."""

    def __init__(self, stop_token_ids: Collection[int]) -> None:
        self._ends = frozenset(stop_token_ids)
        self.stopped = False
        self.matched: int | None = None

    def push(self, token_id: int) -> str:
        if not self.stopped and token_id in self._ends:
            self.stopped, self.matched = True, token_id
        return ""

    def finish(self) -> str:
        return ""


class _Marks:
    """Spellings of tokens that stops are not looked for in, put back where they stood. ``fed``: how many
    characters of the other text came so far."""

    def __init__(self, shown: Collection[int]) -> None:
        self._shown = frozenset(shown)
        # Behind how many characters each stands, of the other text and of all.
        self._waiting: deque[tuple[int, int, str]] = deque()
        self.fed = self._out = 0

    def meet(self, token_id: int, spelling: str, before: int) -> None:
        """A special token behind ``before`` characters of all text."""
        if token_id in self._shown:
            self._waiting.append((self.fed, before, spelling))

    def among(self, text: str, certain: int) -> str:
        """``text`` with the spellings that stand in it, before it or right behind it. ``certain``: what comes
        behind so many characters of all text is, or may be, part of a stop."""
        pieces = []
        while (
            self._waiting and self._waiting[0][1] < certain and self._waiting[0][0] <= self._out + len(text)
        ):
            at, _, spelling = self._waiting.popleft()
            pieces += [text[: at - self._out], spelling]
            text, self._out = text[at - self._out :], at
        self._out += len(text)
        return "".join([*pieces, text])


class StopMatcher:
    """Finds the first stop string that is completed in a text given in pieces.

    Of several that end at the same character the longest wins. ``feed`` returns the text that is
    certain not to belong to a stop; ``matched`` is the stop found, after which all else is dropped.
    ``fed``: how many characters came, hidden ones too; ``certain``: how many of them belong to no stop.

    ``hidden``: spellings that the text leaves out. A stop that holds one is looked for in the text with them
    as well, in all that is fed; the others only in what is seen.
    """

    def __init__(self, stops: Sequence[str], hidden: Collection[str] = ()) -> None:
        self._stops = sorted(set(check_stops(stops)), key=len, reverse=True)
        self._named = [stop for stop in self._stops if any(spelling in stop for spelling in hidden)]
        self._shown, self._whole = _Search(self._stops), _Search(self._named)
        self._held = ""
        # Of the last characters fed, hidden ones too: how many were shown before each.
        self._before: deque[int] = deque(maxlen=max(map(len, self._named), default=0))
        self._total = self.fed = self.certain = 0
        self.matched: str | None = None

    def feed(self, text: str, *, hidden: bool = False) -> str:
        """Take more text; return what is certain. ``hidden``: it is none of the text that is returned."""
        if self.matched is not None:
            return ""
        if not self._stops:
            self.fed = self.certain = self.fed + len(text)
            return "" if hidden else text
        for at, char in enumerate(text):
            stop = self._step(char, hidden)
            if stop is not None:
                self.certain = self.fed + at + 1 - len(stop[0])
                seen = self._held if hidden else self._held + text[: at + 1]
                self.matched, self._held = stop[0], ""
                return seen[: len(seen) - stop[1]]
        self.fed += len(text)
        self.certain = self.fed - self._whole.longest
        seen = self._held if hidden else self._held + text
        certain = len(seen) - max(self._shown.longest, self._shown_in(self._whole.longest))
        self._held = seen[certain:]
        return seen[:certain]

    def flush(self) -> str:
        """The text still held back: no more will come."""
        held, self._held, self.certain = self._held, "", self.fed
        self._shown, self._whole = _Search(self._stops), _Search(self._named)
        return held

    def _step(self, char: str, hidden: bool) -> tuple[str, int] | None:
        """The stop that ``char`` completes, and how many characters of it are shown."""
        found: tuple[str, int] | None = None
        if not hidden and (stop := self._shown.step(char)) is not None:
            found = stop, len(stop)
        if self._named:
            self._before.append(self._total)
            self._total += not hidden
            stop = self._whole.step(char)
            if stop is not None and (found is None or len(stop) > len(found[0])):
                found = stop, self._shown_in(len(stop))
        return found

    def _shown_in(self, count: int) -> int:
        """How many of the last ``count`` characters fed were shown."""
        return self._total - self._before[-count] if count else 0


class _Search:
    """Looks for several words at once, of which a longer one comes before a shorter: Knuth-Morris-Pratt,
    constant work for each character."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._fallback = [_fallback_table(word) for word in words]
        self._state = [0] * len(words)  # how many characters of each the text ends with

    @property
    def longest(self) -> int:
        """The most characters at the text's end that may be the beginning of a word."""
        return max(self._state, default=0)

    def step(self, char: str) -> str | None:
        """Take one more character; the first word that it completes."""
        found = None
        for i, word in enumerate(self._words):
            n, table = self._state[i], self._fallback[i]
            while n and word[n] != char:
                n = table[n - 1]
            if word[n] == char:
                n += 1
            if n == len(word):
                found = found or word
                n = table[n - 1]
            self._state[i] = n
        return found


def _fallback_table(stop: str) -> list[int]:
    table, n = [0] * len(stop), 0
    for i in range(1, len(stop)):
        while n and stop[n] != stop[i]:
            n = table[n - 1]
        if stop[n] == stop[i]:
            n += 1
        table[i] = n
    return table


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """``text`` up to the first completed stop string, and that string (None if there is none).

    Raises RequestError for unusable stop strings.
    """
    matcher = StopMatcher(stops)
    return matcher.feed(text) + matcher.flush(), matcher.matched


class StreamDecoder:
    """Turns tokens into text pieces whose concatenation is ``tokenizer.decode`` of all of them.

    ``stop``: strings at which the text ends, themselves excluded; they may hold the spellings of special
    tokens, which end it too where ``skip_special_tokens`` keeps them out of the text. ``shown``: special
    tokens whose spelling stands in the text all the same; stops are found as if it did not.
    ``stop_token_ids``: tokens at which it ends. ``continuation``: as in ``Tokenizer.decode``, True when the
    tokens continue a prompt. After the end ``stopped`` is True, ``stop_reason`` is "stop_string" or
    "stop_token", and ``matched`` is the string or the id; tokens pushed later are ignored. Raises
    RequestError for unusable stop strings.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        stop_token_ids: Collection[int] = (),
        *,
        skip_special_tokens: bool = True,
        shown: Collection[int] = (),
        continuation: bool = False,
    ) -> None:
        self._tokenizer, self._marks = tokenizer, _Marks(shown)
        self._skip_special = skip_special_tokens
        self._stop_ids = frozenset(stop_token_ids)
        hidden = tokenizer.control_tokens if skip_special_tokens and stop else {}
        self._matcher = StopMatcher(stop, [name for name, i in hidden.items() if tokenizer.is_special(i)])
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = tokenizer.codec.drops_prefix and not continuation
        self.stop_reason: Literal["stop_string", "stop_token"] | None = None
        self.matched: str | int | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string or a stop token was met."""
        return self.stop_reason is not None

    def push(self, token_id: int) -> str:
        """Take one token; return the text that is certain by now. Raises RequestError for no id."""
        if self.stopped:
            return ""
        if token_id in self._stop_ids:
            text = self.finish()
            if not self.stopped:
                self.stop_reason, self.matched = "stop_token", int(token_id)
            return text
        if self._skip_special and self._tokenizer.is_special(token_id):
            spelling = self._tokenizer.token_bytes(token_id).decode(errors="replace")
            self._marks.meet(token_id, spelling, self._matcher.fed)
            return self._emit(spelling, hidden=True)
        data = self._tokenizer.token_bytes(token_id)
        if self._drop_space and data:
            data, self._drop_space = data.removeprefix(b" "), False
        return self._emit(self._utf8.decode(data))

    def finish(self) -> str:
        """No more tokens will come: return what was held back."""
        if self.stopped:
            return ""
        text = self._emit(self._utf8.decode(b"", True))
        if not self.stopped:
            text += self._marks.among(self._matcher.flush(), self._matcher.certain)
        return text

    def _emit(self, text: str, *, hidden: bool = False) -> str:
        self._marks.fed += 0 if hidden else len(text)
        text = self._matcher.feed(text, hidden=hidden)
        if self._matcher.matched is not None:
            self.stop_reason, self.matched = "stop_string", self._matcher.matched
        return self._marks.among(text, self._matcher.certain)
