"""A text in which a passage near the start stands again at the end: running text, and something to look
up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minicpm4.config.strict import require

__all__ = ["LEAST", "Layout", "lay_out"]

LEAST = 512  # tokens of a text
PASSAGE = 768  # tokens of the passage, of shorter texts an eighth
NEAR = 16  # the passage begins after this part of the text


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """``ids`` of all; the last ``passage`` of them are those from ``first`` on."""

    ids: tuple[int, ...]
    first: int
    passage: int

    @property
    def second(self) -> int:
        """Where the passage stands again."""
        return len(self.ids) - self.passage

    @property
    def running(self) -> range:
        """Tokens of the second half, before the passage comes again."""
        return range(len(self.ids) // 2, self.second)

    @property
    def original(self) -> range:
        """Tokens of the passage where it first stands, as ``copy`` has them."""
        return range(self.first + self._unknown, self.first + self.passage)

    @property
    def copy(self) -> range:
        """Tokens of the passage where it stands again, but the first ones: that it does must be seen
        first."""
        return range(self.second + self._unknown, len(self.ids))

    @property
    def _unknown(self) -> int:
        return max(1, self.passage // 16)


def lay_out(prefix: Sequence[int], text: Sequence[int], length: int) -> Layout:
    """``length`` tokens: ``prefix``, the first ones of ``text``, and a passage of them again. Raises
    ConfigError."""
    require(length >= LEAST, f"a length of {length:,} tokens is too short", f"give {LEAST} or more")
    passage = min(PASSAGE, length // 8)
    before = length - passage
    have = len(prefix) + len(text)
    require(
        have >= before,
        f"the text has {have:,} tokens, a length of {length:,} takes {before:,}",
        "give more --text, or a smaller --length",
    )
    ids = [*prefix, *text][:before]
    first = length // NEAR
    return Layout(ids=(*ids, *ids[first : first + passage]), first=first, passage=passage)
