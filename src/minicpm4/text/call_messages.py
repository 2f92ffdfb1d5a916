"""Messages of calls and of what came of them, as chats hold them: the one place that spells these."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["call_message", "result_message"]


def call_message(calls: Iterable[tuple[str, str, Any]], content: str = "") -> dict[str, Any]:
    """The assistant's message that makes calls: id, name, arguments."""
    made = [
        {"id": number, "type": "function", "function": {"name": name, "arguments": given}}
        for number, name, given in calls
    ]
    return {"role": "assistant", "content": content, "tool_calls": made}


def result_message(number: str, name: str, content: str) -> dict[str, Any]:
    """What a tool said to the call of that id."""
    return {"role": "tool", "tool_call_id": number, "name": name, "content": content}
