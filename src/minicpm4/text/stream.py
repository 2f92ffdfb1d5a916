"""Decoding token by token: text as soon as it is certain, and stops at the exact character.

What is emitted is never taken back. Held back are the bytes of an unfinished character and text
that may turn out to be the beginning of a stop string. The cost of a token depends on its own
length and the number of stop strings, not on the output so far.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from minicpm4.errors import RequestError
from minicpm4.text.tokenizer import Tokenizer

__all__ = ["StopMatcher", "StreamDecoder", "cut_at_stop"]

MAX_STOPS = 64
MAX_STOP_CHARS = 4096


class StopMatcher:
    """Finds the first stop string that is completed in a text given in pieces.

    Of several that end at the same character the longest wins. ``feed`` returns the text that is
    certain not to belong to a stop; ``matched`` is the stop found, after which all else is dropped.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            stops = [stops]
        if len(stops) > MAX_STOPS:
            raise RequestError(f"{len(stops)} stop strings were given, the limit is {MAX_STOPS}")
        for stop in stops:
            if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARS:
                raise RequestError(
                    f"stop string {stop!r:.40} is not usable",
                    f"stop strings have 1 to {MAX_STOP_CHARS} characters",
                )
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._fallback = [_fallback_table(stop) for stop in self._stops]
        self._state = [0] * len(self._stops)  # how many characters of each stop the text ends with
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """Take more text; return what is certain."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        for at, char in enumerate(text):
            stop = self._step(char)
            if stop is not None:
                seen = self._held + text[: at + 1]
                self.matched, self._held = stop, ""
                return seen[: len(seen) - len(stop)]
        seen = self._held + text
        certain = len(seen) - max(self._state)
        self._held = seen[certain:]
        return seen[:certain]

    def flush(self) -> str:
        """The text still held back: no more will come."""
        held, self._held = self._held, ""
        self._state = [0] * len(self._stops)
        return held

    def _step(self, char: str) -> str | None:
        # Knuth-Morris-Pratt on every stop at once: constant work for each character.
        found = None
        for i, stop in enumerate(self._stops):
            n, table = self._state[i], self._fallback[i]
            while n and stop[n] != char:
                n = table[n - 1]
            if stop[n] == char:
                n += 1
            if n == len(stop):
                found = found or stop
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

    ``stop``: strings at which the text ends, themselves excluded. ``stop_token_ids``: tokens at
    which it ends. ``continuation``: as in ``Tokenizer.decode``, True when the tokens continue a
    prompt. After the end ``stopped`` is True, ``stop_reason`` is "stop_string" or "stop_token", and
    ``matched`` is the string or the id; tokens pushed later are ignored. Raises RequestError for
    unusable stop strings.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        stop_token_ids: Collection[int] = (),
        *,
        skip_special_tokens: bool = True,
        continuation: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._stop_ids = frozenset(stop_token_ids)
        self._matcher = StopMatcher(stop)
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
        data = self._tokenizer.token_text_bytes(token_id, self._skip_special)
        if self._drop_space and data:
            data, self._drop_space = data.removeprefix(b" "), False
        return self._emit(self._utf8.decode(data))

    def push_all(self, token_ids: Iterable[int]) -> str:
        """Take several tokens; return the text that is certain by now."""
        return "".join(self.push(token_id) for token_id in token_ids)

    def finish(self) -> str:
        """No more tokens will come: return what was held back."""
        if self.stopped:
            return ""
        text = self._emit(self._utf8.decode(b"", True))
        return text if self.stopped else text + self._matcher.flush()

    def _emit(self, text: str) -> str:
        text = self._matcher.feed(text)
        if self._matcher.matched is not None:
            self.stop_reason, self.matched = "stop_string", self._matcher.matched
        return text
