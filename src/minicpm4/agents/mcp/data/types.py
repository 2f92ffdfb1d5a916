"""Types of parameters as sets of others name them, as JSON schemas."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["schema_of"]

_PLAIN = {
    **dict.fromkeys(("str", "string", "text", "date", "datetime"), "string"),
    **dict.fromkeys(("int", "integer"), "integer"),
    **dict.fromkeys(("float", "number", "double"), "number"),
    **dict.fromkeys(("bool", "boolean"), "boolean"),
    **dict.fromkeys(("list", "array", "set", "tuple", "sequence", "iterable"), "array"),
    **dict.fromkeys(("dict", "object", "mapping"), "object"),
}
_KEPT = ("description", "default", "enum")
_NESTED = re.compile(r"(\w+)\s*\[(.*)\]", re.DOTALL)
_OPTIONAL = "optional"
MAX_DEPTH = 8


def schema_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A schema of a tool's arguments, from one, or from a table of parameters with types as Python names
    them ("str", "List[int], optional"). A type that nobody knows holds nothing."""
    if isinstance(parameters.get("properties"), Mapping):
        kept = {key: one for key, one in parameters.items() if key != "optional"}
        properties = {name: _property(one) for name, one in parameters["properties"].items()}
        return {**kept, "type": "object", "properties": properties}
    properties, required = {}, []
    for name, one in parameters.items():
        told = str(one.get("type", ""))
        properties[name] = {**_typed(told), **{key: one[key] for key in _KEPT if key in one}}
        may_lack = "default" in one or "optional" in told.lower() or one.get("required") is False
        required += [] if may_lack else [name]
    made: dict[str, Any] = {"type": "object", "properties": properties}
    return {**made, "required": required} if required else made


def _property(one: Mapping[str, Any]) -> dict[str, Any]:
    """A property of a schema whose type may be a word of Python's."""
    kind = one.get("type")
    known = _PLAIN.get(kind.lower()) if isinstance(kind, str) else None
    return {**one, "type": known} if known else dict(one)


def _typed(told: str, depth: int = 0) -> dict[str, Any]:
    text = told.strip()
    if (words := text.removesuffix(".")) and words[-len(_OPTIONAL) :].lower() == _OPTIONAL:
        text = words[: -len(_OPTIONAL)].rstrip().removesuffix(",").rstrip()
    found = _NESTED.fullmatch(text)
    name = (found[1] if found else text).lower()
    if found and name == "optional" and depth < MAX_DEPTH:
        return _typed(found[2], depth + 1)
    kind = _PLAIN.get(name)
    if kind is None:
        return {}
    if kind == "array" and found and depth < MAX_DEPTH:
        inner = _typed(_first(found[2]), depth + 1) if name != "tuple" else {}
        return {"type": kind, "items": inner} if inner else {"type": kind}
    return {"type": kind}


def _first(text: str) -> str:
    """Of types with commas between, the only one; of several nothing is said."""
    depth = 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            return ""
    return text
