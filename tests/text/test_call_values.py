"""A reply's calls can be told as JSON, and be part of the chat that goes on; others stay text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from minicpm4.text import ToolCall, parse_tool_calls
from minicpm4.text.messages import check_messages
from minicpm4.text.reasoning import MARKS
from minicpm4.text.reply_stream import ReplyStream

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
DEEPEST = 56


def python(source: str) -> str:
    return f"<|tool_call_start|>\n```python\n{source}\n```\n<|tool_call_end|>"


def tagged(arguments: str) -> str:
    return f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'


def deep(levels: int) -> str:
    """Arguments of so many lists and tables in each other."""
    return '{"a": ' + "[" * (levels - 1) + "1" + "]" * (levels - 1) + "}"


def streamed(text: str) -> list[ToolCall]:
    reader = ReplyStream(marks=MARKS, tools=TOOLS)
    parts: Sequence[Any] = [*(part for piece in text for part in reader.push(piece)), *reader.finish()]
    return [part.call for part in parts if part.call is not None]


@pytest.mark.parametrize(
    "text",
    [
        python("f(a={(1, 2): 3})"),
        python("f(a=[{(): 3}])"),
        python("f(a=0x" + "f" * 3600 + ")"),
        python("f(a=-0x" + "f" * 3600 + ")"),
        python(r"f(a='\ud83d')"),
        tagged(r'{"a": "\ud83d"}'),
        tagged(r'{"\ude00": 1}'),
        tagged(deep(DEEPEST + 1)),
        tagged(deep(400)),
        tagged(json.dumps(deep(DEEPEST + 1))),
        tagged('"abc"'),
        tagged('"{"'),
        '```json\n{"name": "f", "arguments": "abc"}\n```',
        '```json\n{"name": "f", "arguments": "{"}\n```',
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    reply = parse_tool_calls(text, TOOLS)
    assert reply.calls == () and reply.content == text
    assert streamed(text) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (python("f(a={1: 2, None: (3,), 4.5: True})"), '{"a": {"1": 2, "null": [3], "4.5": true}}'),
        (python("f(a=0x" + "f" * 3500 + ")"), '{"a": ' + str(int("f" * 3500, 16)) + "}"),
        (tagged(r'{"a": "\ud83d\ude00"}'), '{"a": "😀"}'),
        (tagged(deep(DEEPEST)), deep(DEEPEST)),
    ],
)
def test_the_furthest_that_can_be_told_is_one(text: str, told: str) -> None:
    (call,) = parse_tool_calls(text, TOOLS).calls
    assert call.arguments_text == told and streamed(text) == [call]
    said = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    for arguments in (call.arguments, call.arguments_text):
        said["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": arguments}}]
        check_messages([{"role": "user", "content": "?"}, said])
