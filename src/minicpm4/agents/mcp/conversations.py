"""Conversations with calls that were kept: what of each message and tool is used later is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minicpm4.config.strict import require
from minicpm4.errors import ConfigError, RequestError
from minicpm4.text.messages import check_messages, check_tools

__all__ = ["check_conversation"]


def check_conversation(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], where: str
) -> None:
    """Raise ConfigError, which names the place, unless all messages are a chat's, each call has an id, a
    function and arguments, each result its call, and each tool its name: chats of others may do without."""
    try:
        if messages:  # none is where an agent begins
            check_messages(messages)
        check_tools(tools)
    except RequestError as error:
        raise ConfigError(f"{where}: {error.condition}", error.remedy) from error
    for i, message in enumerate(messages):
        place = f"{where}: messages[{i}]"
        if message["role"] == "tool":
            require(isinstance(message.get("tool_call_id"), str), f"{place} is the result of no call")
        for j, call in enumerate(message.get("tool_calls") or ()):
            function = call.get("function")
            fine = function is not None and isinstance(call.get("id"), str)
            told = f"{place}.tool_calls[{j}] is no call with an id, a function and its arguments"
            require(fine and function.get("arguments") is not None, told)
    for i, tool in enumerate(tools):
        function = tool.get("function")
        fine = isinstance(function, Mapping) and isinstance(function.get("name"), str)
        require(fine, f"{where}: tools[{i}] is no function with a name")
