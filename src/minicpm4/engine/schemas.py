"""JSON schemas from outside: bounded, made of JSON's kinds of values, and copied."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from minicpm4.config.strict import require, shown
from minicpm4.errors import ConfigError

__all__ = ["MAX_SCHEMA_CHARS", "MAX_SCHEMA_DEPTH", "UNHELD", "checked_schema"]

MAX_SCHEMA_CHARS = 1 << 17  # as JSON
MAX_SCHEMA_DEPTH = 64
# Integers that are -2**63 as a double: llguidance 1.9 takes the negative of that, and the process ends.
UNHELD = range(-(1 << 63), -(1 << 63) + 513)


def checked_schema(where: str, value: Any) -> dict[str, Any]:
    """A copy of a JSON schema, which is nobody else's; of True and {}: of any object. Raises ConfigError,
    which names it as ``where``."""
    require(
        value is True or isinstance(value, Mapping),
        f"{where} = {shown(value)} is not a JSON schema",
        "give a table, or True for any JSON object",
    )
    if value is True or not value:
        return {"type": "object"}
    _check_tree(where, value)
    try:
        text = json.dumps(value, allow_nan=False, default=dict)  # what is no dict is a Mapping: _check_tree
        text.encode()
        copy = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None
    require(
        len(text) <= MAX_SCHEMA_CHARS,
        f"{where} has {len(text):,} characters, the limit is {MAX_SCHEMA_CHARS:,}",
    )
    return copy


def _check_tree(name: str, schema: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a schema is made of JSON's kinds of values, not too deep and not too large."""
    left: list[tuple[str, Any, int]] = [(name, schema, 1)]
    seen = 0
    while left:
        where, value, depth = left.pop()
        seen += 1
        require(depth <= MAX_SCHEMA_DEPTH, f"{name} is more than {MAX_SCHEMA_DEPTH} levels deep")
        require(seen <= MAX_SCHEMA_CHARS, f"{name} has over {MAX_SCHEMA_CHARS:,} values")
        if isinstance(value, Mapping):
            for key, item in value.items():
                require(isinstance(key, str), f"{where} has the key {shown(key)}, which is no text")
                left.append((f"{where}.{key}" if depth < 4 else where, item, depth + 1))
        elif isinstance(value, list | tuple):
            left += [(where, item, depth + 1) for item in value]
        else:
            require(
                value is None or isinstance(value, str | int | float),
                f"{where} holds a {type(value).__name__}, which JSON has not",
            )
            require(
                not isinstance(value, int) or value not in UNHELD,
                f"{where} holds {value}, which answers cannot be held to",
                f"use a number from {UNHELD.stop} on",
            )
