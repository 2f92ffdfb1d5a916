"""What clients send: read within bounds, checked against its shape, told field by field."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from minicpm4.config.strict import shown
from minicpm4.files.reading import strict_json
from minicpm4.serve.errors import ApiError, invalid

MAX_DEPTH = 100
_BIG = 1 << 18  # bytes from which on a body is read beside the loop


def _whole(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""Of an int, after its bounds: for JSON, and for languages that have one kind of numbers, 5.0 is one too."""

Receive = Callable[[], Awaitable[Any]]
S = TypeVar("S", bound="Shape")


class Shape(BaseModel):
    """Base of the shapes of bodies: exact types; fields that are not known are kept apart, to be named."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())

    def without_effect(self) -> list[str]:
        """Fields of a body that are known and change nothing here, though whoever sends them may think so."""
        return []

    def at_once(self, share: int) -> int:
        """How many sequences the engine runs for it at a time, where it runs ``share`` prompts of one body at
        most; the gate counts them."""
        return 1


class Unread(Shape):
    """Fields of OpenAI's chats and responses that are of no consequence here, whatever they hold."""

    user: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


async def read_body(receive: Receive, length: str | None, most: int, seconds: float) -> bytes:
    """The whole body of a request. Raises ApiError where it is too long or too slow, ClientGoneError."""
    if length is not None and length.isdigit() and len(length) < 20 and int(length) > most:
        raise _too_long(most)
    parts, total = [], 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                part = message.get("body", b"")
                total += len(part)
                if total > most:
                    raise _too_long(most)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError as error:
        message_text = f"the body took over {seconds:g} s to arrive"
        raise ApiError(408, message_text, kind="timeout_error", code="slow_body") from error


async def read_table(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Raises ApiError."""
    found = await asyncio.to_thread(_parse, body) if len(body) > _BIG else _parse(body)
    if not isinstance(found, dict):
        raise invalid(None, f"the body is a JSON {type(found).__name__}, not an object", "invalid_json")
    return found


def validated(shape: type[S], table: Mapping[str, Any]) -> tuple[S, list[str]]:
    """A body in its shape, and the paths of fields that are not known. Raises ApiError."""
    try:
        made = shape.model_validate(table)
    except ValidationError as error:
        raise _wrong(error, table) from None
    return made, list(_unknown(made, ""))


def _too_long(most: int) -> ApiError:
    return ApiError(413, f"the body has over {most:,} bytes (--max-body)", code="body_too_large")


def _parse(body: bytes) -> Any:
    try:
        found = strict_json(body)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise invalid(None, f"the body is not JSON: {why}", "invalid_json") from None
    level: list[Any] = [found]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return found
    raise invalid(None, f"the body is nested over {MAX_DEPTH} levels deep", "invalid_json")


def _wrong(error: ValidationError, table: Mapping[str, Any]) -> ApiError:
    """The first thing that is wrong, with its path; of alternatives the one that fits furthest."""
    told = max(error.errors(include_url=False), key=lambda one: len(_path(one, table)[1]))
    first = error.errors(include_url=False)[0]
    if _path(first, table)[1][:1] != _path(told, table)[1][:1]:
        told = first
    value, steps = _path(told, table)
    whole = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    path = whole.removeprefix(".")[:200]
    if told["type"] == "missing":
        return invalid(path, f"{path} is missing", "missing_field")
    message = (
        f"{path or 'the body'} = {shown(value)} is not right: {told['msg'][:1].lower()}{told['msg'][1:]}"
    )
    return invalid(path or None, message, "invalid_value")


def _path(told: Any, table: Any) -> tuple[Any, list[str | int]]:
    """The value that is wrong, and the steps to it: names of alternatives, which pydantic adds, are none."""
    steps: list[str | int] = []
    value = table
    for step in told["loc"]:
        inside = step in value if isinstance(value, dict) else isinstance(value, list) and type(step) is int
        if inside:
            value = value[step]
            steps.append(step)
    if told["type"] == "missing":
        steps.append(told["loc"][-1])
    return value, steps


def _unknown(made: Any, where: str) -> list[str]:
    found = []
    if isinstance(made, BaseModel):
        found += [f"{where}{name}" for name in made.model_extra or ()]
        for name in type(made).model_fields:
            found += _unknown(getattr(made, name), f"{where}{name}.")
    elif isinstance(made, list):
        for i, item in enumerate(made):
            if isinstance(item, BaseModel | list):
                found += _unknown(item, f"{where.removesuffix('.')}[{i}].")
    return found
