"""Text that knows which of its characters a chat template wrote.

A template sees the words of a chat as they are, and computes on them as it likes; what it writes itself are
``Written`` strings, and joining, cutting and replacing keep account of them. Every other operation of a str
gives a plain one, which counts as the chat's: a control token in it stays text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, SupportsIndex

__all__ = ["Written", "joined"]

Spans = tuple[tuple[int, int], ...]


class Written(str):
    """A str and the ``spans`` of it that the template wrote: (start, end), ascending, apart."""

    spans: Spans

    def __new__(cls, text: str, spans: Spans = ()) -> Written:
        made = super().__new__(cls, text)
        made.spans = spans
        return made

    @classmethod
    def whole(cls, text: str) -> Written:
        """``text`` that the template wrote, all of it."""
        return cls(text, ((0, len(text)),) if text else ())

    def covers(self, start: int, end: int) -> bool:
        """Whether the template wrote all of ``self[start:end]``, which is not empty."""
        at = bisect_right(self.spans, (start, len(self))) - 1
        return at >= 0 and self.spans[at][0] <= start and end <= self.spans[at][1]

    def cut(self, start: int, end: int) -> Written:
        """``self[start:end]``, for 0 <= start <= end."""
        found = ((max(a, start) - start, min(b, end) - start) for a, b in self.spans)
        return Written(str.__getitem__(self, slice(start, end)), tuple((a, b) for a, b in found if a < b))

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mod__(self, values: Any) -> str:
        text = str.__mod__(self, values)
        values = values if isinstance(values, tuple) else (values,)
        pieces = self.split("%s")
        if not self.count("%") == len(pieces) - 1 == len(values):
            return text
        return joined(part for pair in zip(pieces, (*map(str, values), ""), strict=True) for part in pair)

    def __getitem__(self, key: Any) -> str:
        if isinstance(key, slice):
            start, end, step = key.indices(len(self))
            return self.cut(start, max(start, end)) if step == 1 else str.__getitem__(self, key)
        at = range(len(self))[key]
        return self.cut(at, at + 1)

    def lstrip(self, chars: str | None = None) -> str:
        return self.cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None) -> str:
        return self.cut(0, len(str.rstrip(self, chars)))

    def strip(self, chars: str | None = None) -> str:
        return self.rstrip(chars).lstrip(chars)

    def removeprefix(self, prefix: str) -> str:
        return self.cut(len(prefix), len(self)) if self.startswith(prefix) else self

    def removesuffix(self, suffix: str) -> str:
        return self.cut(0, len(self) - len(suffix)) if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._places(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._places(str.rsplit(self, sep, maxsplit), sep)

    def partition(self, sep: str) -> tuple[str, str, str]:
        return self._three(*str.partition(self, sep))

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        return self._three(*str.rpartition(self, sep))

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        if not old:
            return str.replace(self, old, new, count)
        return Written(new, getattr(new, "spans", ())).join(self.split(old, count))

    def join(self, parts: Iterable[str]) -> str:
        between: list[str] = []
        for part in parts:
            between += [self, part] if between else [part]
        return joined(between)

    def _places(self, pieces: list[str], sep: str | None) -> list[str]:
        """``pieces``, which lie in this text in their order, between them ``sep``, or blanks."""
        at, found = 0, []
        for piece in pieces:
            start = at if sep is not None else str.index(self, piece, at)
            found.append(self.cut(start, start + len(piece)))
            at = start + len(piece) + len(sep or "")
        return list[str](found)

    def _three(self, before: str, sep: str, after: str) -> tuple[str, str, str]:
        first, second = len(before), len(before) + len(sep)
        return self.cut(0, first), self.cut(first, second), self.cut(second, second + len(after))


def joined(parts: Iterable[str]) -> Written:
    """The parts in a row."""
    parts = list(parts)
    spans: list[tuple[int, int]] = []
    at = 0
    for part in parts:
        for start, end in getattr(part, "spans", ()):
            if spans and spans[-1][1] == at + start:
                spans[-1] = (spans[-1][0], at + end)
            else:
                spans.append((at + start, at + end))
        at += len(part)
    return Written("".join(parts), tuple(spans))
