"""Calls that are asked for, and whose mistakes a refusal tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from minicpm4.serve.errors import ApiError, invalid


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


def names_called(tools: Sequence[Mapping[str, Any]], name: str | None) -> list[str] | None:
    """Which of ``tools`` may be called where ``name`` is asked for; None: any. Raises ApiError."""
    known = [tool["function"]["name"] for tool in tools]
    if not known:
        raise invalid("tool_choice", "tool_choice asks for a call, and there are no tools", "invalid_value")
    if name is not None and name not in known:
        message = f"tool_choice names {name!r:.80}, the tools are: {', '.join(known):.200}"
        raise invalid("tool_choice", message, "invalid_value")
    return None if name is None else [name]
