"""Text that comes in pieces, broken between words at a terminal's width."""

from __future__ import annotations

import re
from collections.abc import Callable

_FENCE = re.compile(r"`{3,}[^`]*")
_TAB = 8  # columns from one stop of a tab to the next
_ENDLESS = 1 << 30  # columns of a terminal that does not tell how many it has
_HEAD = 200  # characters of a line of code, of which it is known whether it ends the code


class Wrapped:
    """Breaks text between words, in place of the blanks there. What it has given in all is the same however
    the text is cut into pieces.

    A word is held until it ends, or is longer than a line. Code between fences of three backticks stays as
    it is, and so does a line without blanks: what is copied has no line ends that were not written. Between
    wide characters the terminal itself breaks. ``width`` is asked at each line; 0: it is not known.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._fence = ""  # that began the code under way
        self._word, self._size, self._gap = "", 0, ""  # held: a word, its columns, the blanks before it
        self._code = ""  # the line of code under way
        self._long = False  # whether the word under way is longer than a line, and is shown as it comes
        self._new_line()

    def add(self, text: str) -> str:
        """What of all the text so far can be shown now, and was not."""
        return "".join(map(self._next, text))

    def flush(self) -> str:
        """What is held, to be shown before anything else is."""
        return self._ended() + self._blanks()

    def _next(self, char: str) -> str:
        if not self._columns:
            self._measure()  # the first of a line may come long after the end of the one before
        if char == "\n":
            return self._line_end()
        if self._fence:
            if len(self._code) < _HEAD:
                self._code += char
            return char
        if char in " \t":
            shown = self._ended()
            self._gap += char
            self._apart |= self._words
            return shown if self._words else shown + self._blanks()  # at the beginning of a line they stay
        size = 1 if char.isascii() else _cells(char)
        if size > 1:
            return self._ended() + self._put(char, size, wide=True)
        if self._long:
            self._advance(size)
            return char
        self._word, self._size = self._word + char, self._size + size
        if self._size <= self._columns:
            return ""
        shown = self._ended()
        self._long = True
        return shown

    def _new_line(self) -> None:
        self._columns = self._column = 0
        self._words = False  # whether the line has one
        self._apart = False  # whether it has blanks behind one
        self._long, self._code = False, ""

    def _measure(self) -> None:
        self._columns = self._width() or _ENDLESS

    def _line_end(self) -> str:
        if self._fence:
            behind = self._code.strip()
            if behind.startswith(self._fence) and not behind.strip("`"):
                self._fence = ""
            shown = ""
        else:
            shown = self.flush()
        self._new_line()
        return shown + "\n"

    def _ended(self) -> str:
        """The word under way, which ends here."""
        word, size = self._word, self._size
        self._word, self._size, self._long = "", 0, False
        if not word:
            return ""
        if not self._words and _FENCE.fullmatch(word):
            self._fence = word[: len(word) - len(word.lstrip("`"))]
        return self._put(word, size)

    def _put(self, text: str, size: int, wide: bool = False) -> str:
        """A word, or a wide character, with what goes before it: blanks, or the end of a line."""
        gap, self._gap = self._gap, ""
        may_break = gap != "" or (self._apart and not wide and text[0].isalnum())
        column = self._behind(gap)
        self._words = True
        if may_break and self._column and column + size > self._columns:
            self._measure()
            gap, column = "\n", 0
        elif wide and column + size > self._columns:  # the terminal puts all of it into its next row
            column = 0
        self._column = column
        self._advance(size)
        return gap + text

    def _blanks(self) -> str:
        """Blanks with no word behind them; none where they would fill a row of their own."""
        gap, self._gap = self._gap, ""
        column = self._behind(gap)
        if self._words and column > self._columns:
            return ""
        self._column = min(column, self._columns)
        return gap

    def _behind(self, gap: str) -> int:
        """The column behind blanks."""
        column = self._column
        for char in gap:
            column = column + 1 if char == " " else (column // _TAB + 1) * _TAB
        return column

    def _advance(self, size: int) -> None:
        """Go on by ``size`` columns; where the terminal itself breaks, in its next row."""
        self._column += size
        if self._column > self._columns:
            self._column = (self._column - 1) % self._columns + 1


def _cells(char: str) -> int:
    from rich.cells import get_character_cell_size  # English needs it not

    return get_character_cell_size(char)
