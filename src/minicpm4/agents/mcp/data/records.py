"""Records of files that others made: a list in JSON, or a record a line, read one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from minicpm4.config.strict import require
from minicpm4.errors import ConfigError

__all__ = ["records"]

CHUNK = 1 << 20
MAX_RECORD = 1 << 26  # characters
_BETWEEN = " \t\r\n,"


def records(files: Iterable[Path]) -> Iterator[tuple[str, Any]]:
    """Each record, and where it stands. Raises ConfigError where a file is not JSON, OSError."""
    for file in files:
        for number, value in enumerate(_records(file), 1):
            yield f"{file}, record {number}", value


def _records(file: Path) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    with file.open(encoding="utf-8-sig") as source:
        try:
            text = source.read(CHUNK).lstrip()
            in_list = text.startswith("[")
            text = text[1:] if in_list else text
            while text := _some(text, source):
                if in_list and text.startswith("]"):
                    return
                value, text = _value(decoder, text, source, file)
                yield value
            require(not in_list, f"{file} ends within its list", "get it again")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file} is not UTF-8: {error}") from error


def _some(text: str, source: Any) -> str:
    """What comes next, without what stands between; "" at the end."""
    text = text.lstrip(_BETWEEN)
    while not text and (more := source.read(CHUNK)):
        text = more.lstrip(_BETWEEN)
    return text


def _value(decoder: json.JSONDecoder, text: str, source: Any, file: Path) -> tuple[Any, str]:
    """The value that ``text`` begins with, and what stands behind it; more is read while it is needed."""
    chunk = CHUNK
    while True:
        try:
            value, end = decoder.raw_decode(text)
            if isinstance(value, dict | list):  # a number may go on
                return value, text[end:]
            raise ConfigError(f"{file} has {value!r:.60} where a record should be")
        except RecursionError as error:
            raise ConfigError(f"{file} has a record that is too deep to read") from error
        except ValueError as error:
            require(len(text) <= MAX_RECORD, f"{file} has a record of over {MAX_RECORD:,} characters")
            wrong = error
        more = source.read(chunk)
        if not more:
            told = f"{file} is not JSON: {wrong}"
            raise ConfigError(told, "give a list, or a record a line") from wrong
        text += more
        chunk *= 2
