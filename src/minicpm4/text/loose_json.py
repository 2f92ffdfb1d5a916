"""JSON as models write it: read where one reading alone is possible, refused with the reason elsewhere.

Beside JSON these are read: raw line breaks and other control characters in strings; several values one after
another, with or without commas between them; closing brackets too many after a value; a comma after the last
item; strings in single quotes and ``\\'``; bare names as keys; Python's True, False and None. A name that a
table gives two values, an escape that JSON does not know, anything that is not closed: refused, since each
could mean two things.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["JSON_BLANKS", "LooseJsonError", "NumberRangeError", "read_value", "read_values"]

MAX_DEPTH = 64
MAX_VALUES = 128
JSON_BLANKS = " \t\r\n"  # as JSON has them: str.strip knows more
_BLANK = re.compile(f"[{JSON_BLANKS}]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.])")
_WORD = re.compile(r"[^\W\d]\w*")
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_PLAIN = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}
_ESCAPES = {'"': '"', "'": "'", "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_UNICODE = re.compile(r"\\u([0-9a-fA-F]{4})(?:\\u([dD][c-fC-F][0-9a-fA-F]{2}))?")


class LooseJsonError(ValueError):
    """The text is no JSON, and cannot be read as such in one way alone."""


class NumberRangeError(LooseJsonError):
    """A number is larger than a double."""

    def __init__(self) -> None:
        super().__init__("a number is out of range")


def read_values(text: str, separators: Sequence[str] = ()) -> list[Any]:
    """The values in ``text``, one at least; ``separators``: words that may stand between two, too.

    Raises LooseJsonError.
    """
    try:
        return [_STRICT.decode(text)]
    except LooseJsonError:
        raise
    except RecursionError as error:
        raise LooseJsonError("nested too deep") from error
    except ValueError as error:
        first = error
    try:
        return _Reader(text).values(separators)
    except LooseJsonError as error:
        raise LooseJsonError(f"{error} (strictly: {first})") from error


def read_value(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at ``at``, and where it ends. Raises LooseJsonError."""
    reader = _Reader(text, at)
    return reader.one()


class _Reader:
    def __init__(self, text: str, at: int = 0) -> None:
        self._text, self._at = text, at

    def one(self) -> tuple[Any, int]:
        self._blank()
        return self._strict_value(), self._at

    def values(self, separators: Sequence[str]) -> list[Any]:
        # Between two values: blanks, and after the first also brackets too many.
        passed_over = [rf"[{JSON_BLANKS}}}\],]", *map(re.escape, separators)]
        between = re.compile(f"(?:{'|'.join(passed_over)})*+")
        found: list[Any] = []
        while True:
            passed = (between if found else _BLANK).match(self._text, self._at)
            assert passed is not None
            self._at = passed.end()
            if self._at == len(self._text) and found:
                return found
            if len(found) == MAX_VALUES:
                raise LooseJsonError(f"more than {MAX_VALUES} values")
            found.append(self._strict_value() if self._at < len(self._text) else self._value(0))

    def _strict_value(self) -> Any:
        """One value, by the library where that can, which is much faster."""
        try:
            value, self._at = _STRICT.raw_decode(self._text, self._at)
        except LooseJsonError:
            raise
        except RecursionError as error:
            raise LooseJsonError("nested too deep") from error
        except ValueError:
            return self._value(0)
        return value

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise LooseJsonError(f"nested over {MAX_DEPTH} levels deep")
        char = self._peek()
        if char == "{":
            return self._table(depth)
        if char == "[":
            return self._list(depth)
        if char in _PLAIN:
            return self._string()
        number = _NUMBER.match(self._text, self._at)
        if number:
            self._at = number.end()
            return _number(number[0])
        word = _WORD.match(self._text, self._at)
        if word and word[0] in _WORDS:
            self._at = word.end()
            return _WORDS[word[0]]
        raise self._error("no value")

    def _table(self, depth: int) -> dict[str, Any]:
        pairs: list[tuple[str, Any]] = []
        self._at += 1
        while self._next("}", bool(pairs)):
            key = self._key()
            self._blank()
            if self._peek() != ":":
                raise self._error("no colon after a name")
            self._at += 1
            self._blank()
            pairs.append((key, self._value(depth + 1)))
        return _table(pairs)

    def _list(self, depth: int) -> list[Any]:
        items: list[Any] = []
        self._at += 1
        while self._next("]", bool(items)):
            items.append(self._value(depth + 1))
        return items

    def _next(self, closing: str, some: bool) -> bool:
        """Whether another item comes; ``some``: after one, so after a comma."""
        self._blank()
        if some and self._peek() == ",":
            self._at += 1
            self._blank()
        elif some and self._peek() != closing:
            raise self._error(f"neither a comma nor {closing}")
        if self._peek() == closing:
            self._at += 1
            return False
        return True

    def _key(self) -> str:
        if self._peek() in _PLAIN:
            return self._string()
        word = _WORD.match(self._text, self._at)
        if word is None:
            raise self._error("no name")
        self._at = word.end()
        return word[0]

    def _string(self) -> str:
        quote = self._text[self._at]
        parts: list[str] = []
        self._at += 1
        while True:
            plain = _PLAIN[quote].match(self._text, self._at)
            assert plain is not None
            parts.append(plain[0])
            self._at = plain.end()
            if self._peek() == quote:
                self._at += 1
                return "".join(parts)
            parts.append(self._escape())

    def _escape(self) -> str:
        code = _UNICODE.match(self._text, self._at)
        if code:
            first, second = int(code[1], 16), code[2]
            if second is not None and 0xD800 <= first < 0xDC00:
                self._at = code.end()
                return chr(0x10000 + ((first - 0xD800) << 10) + int(second, 16) - 0xDC00)
            self._at += 6
            return chr(first)
        char = self._text[self._at + 1 : self._at + 2]
        if char not in _ESCAPES:
            raise self._error("an escape that JSON does not have")
        self._at += 2
        return _ESCAPES[char]

    def _peek(self) -> str:
        if self._at >= len(self._text):
            raise LooseJsonError("it ends too early")
        return self._text[self._at]

    def _blank(self) -> None:
        blank = _BLANK.match(self._text, self._at)
        assert blank is not None
        self._at = blank.end()

    def _error(self, what: str) -> LooseJsonError:
        return LooseJsonError(f"{what} at {self._text[self._at : self._at + 20]!r}")


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        for key, value in pairs:
            if repr(value) != repr(table[key]):  # 1 is no True
                raise LooseJsonError(f"it gives {key!r:.40} two values")
    return table


def _number(text: str) -> Any:
    try:
        return json.loads(text, parse_float=_float)
    except LooseJsonError:
        raise
    except ValueError as error:  # more digits than Python reads
        raise NumberRangeError from error


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NumberRangeError
    return value


def _refuse(name: str) -> None:
    raise LooseJsonError(f"{name} is not allowed")


# What is JSON but for raw control characters, whose meaning is plain.
_STRICT = json.JSONDecoder(strict=False, parse_float=_float, parse_constant=_refuse, object_pairs_hook=_table)
