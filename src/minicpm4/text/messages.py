"""Chat messages from outside: checked, bounded, in the one shape that templates expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from minicpm4.errors import RequestError

__all__ = ["MAX_CHAT_CHARS", "check_messages", "check_tools"]

MAX_MESSAGES = 16384
MAX_TOOLS = 1024
MAX_CHAT_CHARS = 64 << 20
MAX_DEPTH = 64
MAX_ROLE_CHARS = 64


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of ``messages`` with ``content`` as one string; other keys pass through.

    Each needs a ``role`` (str) and ``content``: a str, a list of text parts, which are joined, or
    None (then empty) beside tool_calls. Arguments of tool calls given as JSON text are parsed.
    Raises RequestError.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise RequestError(
            f"messages is a {type(messages).__name__}, not a list",
            'pass [{"role": "user", "content": "..."}]',
        )
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise RequestError(f"the chat has {len(messages)} messages", f"1 to {MAX_MESSAGES} are accepted")
    checked = [_check_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    _check_size(checked, "the messages")
    return checked


def check_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Copies of ``tools`` (JSON-schema functions); None when there are none. Raises RequestError."""
    if tools is None:
        return None
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise RequestError(f"tools is a {type(tools).__name__}, not a list of functions")
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"{len(tools)} tools were given, the limit is {MAX_TOOLS}")
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise RequestError(f"tools[{i}] is a {type(tool).__name__}, not a table")
    _check_size(tools, "the tools")
    return [dict(tool) for tool in tools] or None


def _check_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} is a {type(message).__name__}, not a table with role and content")
    role = message.get("role")
    if not isinstance(role, str) or not 0 < len(role) <= MAX_ROLE_CHARS or not role.isprintable():
        raise RequestError(
            f"{where}.role = {role!r:.80} is not a role", "use system, user, assistant or tool"
        )
    calls = message.get("tool_calls")
    checked = dict(message)
    checked["content"] = _content(message.get("content"), bool(calls), f"{where}.content")
    if calls:
        if isinstance(calls, str | bytes | Mapping) or not isinstance(calls, Sequence):
            raise RequestError(f"{where}.tool_calls is a {type(calls).__name__}, not a list")
        checked["tool_calls"] = [_check_call(c, f"{where}.tool_calls[{i}]") for i, c in enumerate(calls)]
    return checked


def _content(content: Any, has_calls: bool, where: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        if has_calls:
            return ""
        raise RequestError(f"{where} is missing", "only an assistant message with tool_calls may lack it")
    if not isinstance(content, list | tuple):
        raise RequestError(f"{where} is a {type(content).__name__}", "use a string or a list of text parts")
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if kind == "text" else None
        if not isinstance(text, str):
            raise RequestError(
                f"{where}[{i}] has type {kind!r}", 'only {"type": "text", "text": "..."} is read'
            )
        texts.append(text)
    return "".join(texts)


def _check_call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise RequestError(f"{where} is a {type(call).__name__}, not a table")
    inner = call.get("function", call)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise RequestError(f"{where} has no function name")
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where}: the arguments are not JSON: {error}") from error
    if not isinstance(arguments, Mapping):
        raise RequestError(f"{where}: the arguments are a {type(arguments).__name__}, not a table")
    fixed = {**inner, "arguments": dict(arguments)}
    return {**call, "function": fixed} if "function" in call else fixed


def _check_size(value: Any, what: str) -> None:
    chars = 0
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                chars += len(item)
            elif isinstance(item, Mapping):
                below += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                below += item
        if chars + len(below) > MAX_CHAT_CHARS:
            raise RequestError(f"{what} hold over {MAX_CHAT_CHARS} characters", "shorten the chat")
        if not below:
            return
        level = below
    raise RequestError(f"{what} are nested over {MAX_DEPTH} levels deep")
