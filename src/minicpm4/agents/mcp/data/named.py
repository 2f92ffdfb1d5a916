"""Does a query say what a call needs? And is an answer the one that was known?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from minicpm4.agents.mcp.tools import Tool

__all__ = ["answers", "names_tool", "unnamed"]

LONG = 60  # characters: of longer texts half of the words are enough
_APART = re.compile(r"[\s\"'`]+")
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


def unnamed(arguments: Mapping[str, Any], told: Iterable[str]) -> str:
    """The first value of a call that none of the texts says, as "name: value"; "": they say all."""
    texts = [_plain(one) for one in told]
    for name, value in _values(arguments):
        if not any(_says(text, value) for text in texts):
            return f"{name}: {value!r:.100}"
    return ""


def names_tool(query: str, tool: Tool) -> bool:
    """Whether a query has a tool's name in it, as it is written: a word that people use is none."""
    written = [tool.called] + [tool.name] * ("_" in tool.name or "-" in tool.name)
    return any(name.casefold() in query.casefold() for name in written)


def answers(given: str, known: str) -> bool:
    """Whether an answer is the known one: that text, or its number, is in it."""
    wanted = _plain(known)
    if not wanted:
        return False
    numbers = [_number(one) for one in _NUMBER.findall(given)]
    if _NUMBER.fullmatch(known.strip()):
        return _number(known.strip()) in numbers
    return wanted in _plain(given)


def _values(arguments: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Texts and numbers, of lists and tables too; true, false, null and nothing are not looked for."""
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            yield from _values(value)
        elif isinstance(value, list):
            yield from _values({f"{name}[{i}]": one for i, one in enumerate(value)})
        elif (isinstance(value, str) and value.strip()) or (
            isinstance(value, int | float) and not isinstance(value, bool)
        ):
            yield name, value


def _says(text: str, value: Any) -> bool:
    if isinstance(value, str):
        plain = _plain(value)
        if len(value) <= LONG:
            return plain in text
        words = re.findall(r"\w{3,}", value.casefold())
        return 2 * sum(word in text for word in words) >= len(words)
    numbers = {_number(one) for one in _NUMBER.findall(text)}
    try:
        return float(value) in numbers
    except OverflowError:  # of more digits than a float has
        return False


def _number(text: str) -> float:
    return float(text.replace(",", "") or 0)


def _plain(text: str) -> str:
    """Without what does not count: case, spaces, quotation marks."""
    return _APART.sub("", text).casefold()
