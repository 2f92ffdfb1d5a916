"""Records of files that others made: a list in JSON, or a record a line, read one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from minicpm4.config.strict import require
from minicpm4.errors import ConfigError

__all__ = ["records"]

CHUNK = 1 << 20
MAX_RECORD = 1 << 26  # characters
WITHIN_NUMBER = 4  # characters, "1" of "1e+5" and behind: a number that ends so near to the end may go on
_BETWEEN = re.compile(r"[ \t\r\n,]*")


def records(files: Iterable[Path]) -> Iterator[tuple[str, Any]]:
    """Each record, whatever JSON it is, and where it stands. Raises ConfigError where a file is not JSON, or
    has no record, OSError."""
    for file in files:
        number = 0
        for number, value in enumerate(_records(file), 1):
            yield f"{file}, record {number}", value
        require(number > 0, f"{file} has no record", "give a list in JSON, or a record a line")


def _records(file: Path) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    with file.open(encoding="utf-8-sig") as source:
        try:
            text, at = _some("", 0, source)
            in_list = text.startswith("[", at)
            at += in_list
            while True:
                text, at = _some(text, at, source)
                if at == len(text):
                    break
                if in_list and text[at] == "]":
                    return
                value, text, at = _value(decoder, text, at, source, file)
                yield value
            require(not in_list, f"{file} ends within its list", "get it again")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file} is not UTF-8: {error}") from error


def _some(text: str, at: int, source: Any) -> tuple[str, int]:
    """Text and the place in it where something comes next, behind what stands between; its end at the end."""
    at = _past(text, at)
    while at == len(text) and (more := source.read(CHUNK)):
        text, at = more, _past(more, 0)
    return text, at


def _past(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    return found.end() if found else at


def _value(decoder: json.JSONDecoder, text: str, at: int, source: Any, file: Path) -> tuple[Any, str, int]:
    """The value that stands at a place of ``text``, and the text and place behind it; more is read while it
    is needed. What is read is copied where a chunk ends, and for no other value."""
    chunk = CHUNK
    while True:
        try:
            value, end = decoder.raw_decode(text, at)
            if isinstance(value, dict | list) or len(text) - end >= WITHIN_NUMBER:
                return value, text, end
            wrong: ValueError | None = None
        except RecursionError as error:
            raise ConfigError(f"{file} has a record that is too deep to read") from error
        except ValueError as error:
            require(len(text) - at <= MAX_RECORD, f"{file} has a record of over {MAX_RECORD:,} characters")
            wrong = error
        more = source.read(chunk)
        if not more and wrong is None:
            return value, text, end
        if not more:
            told = f"{file} is not JSON: {wrong}"
            raise ConfigError(told, "give a list, or a record a line") from wrong
        text, at = text[at:] + more, 0
        chunk *= 2
