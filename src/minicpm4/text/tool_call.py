"""A call of a tool, as a model wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minicpm4.files import finite, json_text
from minicpm4.text.pycalls import CallSyntaxError

__all__ = ["ToolCall", "written_call"]

MAX_DEPTH = 56  # of arguments: a chat of 64 levels, of which the last is its text, holds them in its own
_MOST_BITS = 14_284  # of a whole number: Python writes 4,300 digits and no more


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """One call: the tool's name and its arguments (JSON-like values; tuples stay tuples)."""

    name: str
    arguments: dict[str, Any]

    @property
    def arguments_text(self) -> str:
        """The arguments as JSON."""
        try:
            return json_text(self.arguments, ascii_only=False)
        except (TypeError, ValueError):  # a literal of Python for which JSON has no word
            return json.dumps(finite(self.arguments), ensure_ascii=False, default=str)


def written_call(name: str, arguments: dict[str, Any]) -> ToolCall:
    """A call that a reply holds. Raises CallSyntaxError where its arguments cannot be told as JSON, or not be
    part of the chat that goes on."""
    level: list[Any] = [name, arguments]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                if not all(key is None or isinstance(key, str | int | float) for key in item):
                    raise CallSyntaxError("a table has a name that JSON has none for")
                below += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                below += item
            else:
                _check_plain(item)
        if not below:
            return ToolCall(name=name, arguments=arguments)
        level = below
    raise CallSyntaxError(f"the arguments are nested over {MAX_DEPTH} levels deep")


def _check_plain(item: Any) -> None:
    if isinstance(item, str) and not item.isascii() and any("\ud800" <= char <= "\udfff" for char in item):
        raise CallSyntaxError("a text holds half a character")
    if isinstance(item, int) and item.bit_length() > _MOST_BITS:
        raise CallSyntaxError("a number is out of range")
