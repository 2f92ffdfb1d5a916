"""Calls that are asked for: an answer that is nothing but a call, valid by its tool's schema.

The answer is held to ``{"name": …, "arguments": …}`` whatever the model's own way of calling is, so it is
read the same way for all models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from minicpm4.serve.errors import ApiError, invalid
from minicpm4.text.toolcalls import ToolCall

ANY = {"type": "object"}


@contextmanager
def told_of(field: str | None) -> Iterator[None]:
    """What is wrong with a ``json_schema`` is told of the field that it came from; None: of itself."""
    try:
        yield
    except ApiError as error:
        if field is not None and error.param == "json_schema":
            error.param = field
            error.message = field + error.message.removeprefix("json_schema")
        raise


def call_schema(tools: Sequence[Mapping[str, Any]], name: str | None) -> dict[str, Any]:
    """The JSON schema of a call of one of ``tools``, or of the one of this name. Raises ApiError."""
    functions = [tool["function"] for tool in tools]
    wanted = [one for one in functions if name is None or one["name"] == name]
    if not wanted:
        known = ", ".join(one["name"] for one in functions) or "none"
        raise invalid(
            "tool_choice", f"tool_choice names {name!r:.80}, the tools are: {known:.200}", "invalid_value"
        )
    calls, definitions = [], {}
    for i, function in enumerate(wanted):
        arguments = function.get("parameters") or ANY
        if _refers(arguments):  # by paths from its own root
            definitions[f"tool{i}"] = _moved(arguments, f"#/$defs/tool{i}")
            arguments = {"$ref": f"#/$defs/tool{i}"}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**schema, "$defs": definitions} if definitions else schema


def read_call(text: str) -> ToolCall | None:
    """The call that an answer is; None where it was cut off."""
    try:
        found = json.loads(text)
        return ToolCall(name=found["name"], arguments=dict(found["arguments"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _refers(schema: Any) -> bool:
    if isinstance(schema, dict):
        return "$ref" in schema or any(map(_refers, schema.values()))
    return isinstance(schema, list) and any(map(_refers, schema))


def _moved(schema: Any, root: str) -> Any:
    """``schema`` with the paths in it from ``root`` on, where it now stands."""
    if isinstance(schema, dict):
        return {
            key: _reference(value, root) if key == "$ref" else _moved(value, root)
            for key, value in schema.items()
        }
    return [_moved(item, root) for item in schema] if isinstance(schema, list) else schema


def _reference(path: Any, root: str) -> Any:
    return root + path[1:] if isinstance(path, str) and path.startswith("#") else path
