"""Chat messages from outside: checked, bounded, as the caller said them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from minicpm4.errors import RequestError
from minicpm4.files.reading import strict_json

__all__ = [
    "MAX_CHAT_CHARS",
    "check_messages",
    "check_roles",
    "check_tools",
    "check_variables",
    "parsed_arguments",
]

MAX_MESSAGES = 16384
MAX_TOOLS = 1024
MAX_CHAT_CHARS = 64 << 20
MAX_DEPTH = 64
MAX_ROLE_CHARS = 64
REASONING = ("reasoning_content", "thinking", "reasoning")  # one meaning; the first that is given counts
# What a chat's prompt is made of beside the template's own variables; ``trust_content`` above all.
_RESERVED = ("messages", "tools", "enable_thinking", "add_generation_prompt", "trust_content")
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
"""What every template is given; other roles are known to some, which name them."""
_SPEAKS = ("system", "developer", "user")  # whose messages are their content


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of ``messages`` as the caller said them, but for what has several spellings and one meaning.

    Each needs a ``role`` (str) and, of a user or system, ``content``: a str or a list of text parts. Others
    may have none, or None: what a template takes for that, and for parts and arguments of calls, is found by
    rendering (``shapes``). Fields that are None, and an empty ``tool_calls``, are absent. Reasoning under any
    of its names has the names that transformers gives it. Raises RequestError.
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


def check_roles(messages: Sequence[Mapping[str, Any]], template: str | None) -> None:
    """Refuse a role that neither the world at large nor the template knows: many templates write any word.
    Raises RequestError, which begins with the place."""
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or role in ROLES:  # what is no text is refused with the message
            continue
        if not re.search(rf"(['\"]){re.escape(role)}\1", template or ""):
            raise RequestError(
                f"messages[{i}].role = {role!r:.80} is not a role",
                "use system, developer, user, assistant or tool",
            )


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


def check_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``variables`` that a template is to see by name. Raises RequestError."""
    for name in variables:
        if not isinstance(name, str) or not name.isidentifier() or name in _RESERVED:
            raise RequestError(
                f"{str(name)!r:.80} cannot be given to the chat template by this name",
                "use a variable of the template",
            )
    _check_size(variables, "the variables of the chat template")
    return dict(variables)


def _check_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} is a {type(message).__name__}, not a table with role and content")
    role = message.get("role")
    if not isinstance(role, str) or not 0 < len(role) <= MAX_ROLE_CHARS or not role.isprintable():
        raise RequestError(
            f"{where}.role = {role!r:.80} is not a role", "use system, user, assistant or tool"
        )
    checked = {k: v for k, v in message.items() if v is not None or k == "content"}
    calls = checked.get("tool_calls")
    if not calls:
        checked.pop("tool_calls", None)
    elif isinstance(calls, str | bytes | Mapping) or not isinstance(calls, Sequence):
        raise RequestError(f"{where}.tool_calls is a {type(calls).__name__}, not a list")
    else:
        checked["tool_calls"] = [_check_call(c, f"{where}.tool_calls[{i}]") for i, c in enumerate(calls)]
    if checked.get("content") is not None:
        checked["content"] = _content(checked["content"], f"{where}.content")
    elif role in _SPEAKS and "tool_calls" not in checked:
        raise RequestError(f"{where}.content is missing", f"a message of role {role} needs one")
    said = next((checked[name] for name in REASONING if name in checked), None)
    return checked if said is None else {"thinking": said, **checked, "reasoning_content": said}


def _content(content: Any, where: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise RequestError(f"{where} is a {type(content).__name__}", "use a string or a list of text parts")
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RequestError(
                f"{where}[{i}] has type {kind!r}", 'only {"type": "text", "text": "..."} is read'
            )
    return [dict(part) for part in content]


def _check_call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise RequestError(f"{where} is a {type(call).__name__}, not a table")
    inner = call.get("function", call)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise RequestError(f"{where} has no function name")
    arguments = inner.get("arguments")
    if arguments is not None and not isinstance(arguments, str | Mapping):
        raise RequestError(f"{where}: the arguments are a {type(arguments).__name__}, not a table")
    fixed = {**inner, "arguments": {} if arguments is None else arguments}
    return {**call, "function": fixed} if "function" in call else fixed


def parsed_arguments(arguments: str | Mapping[str, Any], where: str) -> dict[str, Any]:
    """Arguments of a call as a table. Raises RequestError for text that holds none."""
    found: Any = arguments
    if isinstance(arguments, str):
        try:
            found = strict_json(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where}: the arguments are not JSON: {error}") from error
    if not isinstance(found, Mapping):
        raise RequestError(f"{where}: the arguments are a {type(found).__name__}, not a table")
    return dict(found)


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
