"""A reply is taken apart the same way however it is cut into pieces."""

from __future__ import annotations

from typing import Any

import pytest

from minicpm4.text.reasoning import MARKS
from minicpm4.text.reply_stream import ReplyStream
from minicpm4.text.toolcalls import ToolCall

JSON = '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>'
PYTHON = "<|tool_call_start|>\n```python\nf(x=1)\ng(y=[2])\n```\n<|tool_call_end|>"


def taken(text: str, size: int, **options: Any) -> tuple[str, str, list[ToolCall]]:
    stream = ReplyStream(marks=MARKS, **{"tools": [], **options})
    parts = [part for at in range(0, len(text), size) for part in stream.push(text[at : at + size])]
    parts += stream.finish()
    calls = [part.call for part in parts if part.call is not None]
    return "".join(p.reasoning for p in parts), "".join(p.content for p in parts), calls


CASES = [
    ("plain text", ("", "plain text", [])),
    (" spaces  inside ", ("", " spaces  inside", [])),
    (
        f"<think>why</think>\n\nSo: {PYTHON}",
        ("why", "So:", [ToolCall(name="f", arguments={"x": 1}), ToolCall(name="g", arguments={"y": [2]})]),
    ),
    (JSON, ("", "", [ToolCall(name="f", arguments={"x": "</tool_call>"})])),
    (f"{JSON}\n{JSON} done", ("", "done", [ToolCall(name="f", arguments={"x": "</tool_call>"})] * 2)),
    ('<tool_call>{"name": "f"}', ("", "", [ToolCall(name="f", arguments={})])),  # cut off, but whole
    ("<tool_call>{oh", ("", "<tool_call>{oh", [])),
    ("<tool_call>not one</tool_call> and on", ("", "<tool_call>not one</tool_call> and on", [])),
    ("a < b <tool", ("", "a < b <tool", [])),
]


@pytest.mark.parametrize(("text", "expected"), CASES, ids=[text[:20] for text, _ in CASES])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_parts_do_not_depend_on_the_cuts(text: str, expected: Any, size: int) -> None:
    assert taken(text, size) == expected


def test_calls_are_text_where_no_tools_are_offered() -> None:
    assert taken(JSON, 5, tools=None) == ("", JSON, [])
