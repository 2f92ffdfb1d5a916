"""Calls in blocks of code, as small models write them: only where all of one is a call of a known tool."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from minicpm4.text.reasoning import MARKS
from minicpm4.text.reply_stream import ReplyStream
from minicpm4.text.toolcalls import parse_tool_calls
from tests.text.call_templates import TOOLS, WRITE
from tests.text.test_call_formats import form_of, parts_of, told

GIVEN = {"path": "a.md", "text": "```json\\n{}\\n```", "lines": [1]}
ONE = json.dumps({"name": "write-file", "arguments": GIVEN})
PRETTY = json.dumps({"name": "write-file", "arguments": GIVEN}, indent=2)
BLOCK = f"```json\n{ONE}\n```"
FORMS = ("none", "qwen2_5", "llama3_1", "hermes")


def read(text: str, form: str, held: bool) -> tuple[list[tuple[str, Any]], str]:
    """Calls and content; streamed in pieces of any sizes and whole they are the same."""
    own = None if form == "none" else form_of(form)
    whole = parse_tool_calls(text, TOOLS, form=own)
    calls = [(one.name, one.arguments) for one in whole.calls]
    for seed in range(20):
        parts = parts_of(text, seed, form=own, held=held)
        assert [(name, json.loads(given)) for name, given in told(parts)] == calls
        content = "".join(part.content for part in parts)
        assert content.split() == whole.content.split()
        if not calls:
            assert content.strip() == whole.content
    return calls, whole.content


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("body", [ONE, PRETTY, ONE.replace("arguments", "parameters")])
def test_a_block_that_is_a_call_is_one(body: str, form: str, held: bool) -> None:
    calls, content = read(f"I write it:\n\n```json\n{body}\n```\n", form, held)
    assert calls == [("write-file", GIVEN)] and content == "I write it:"
    two, content = read(f'{BLOCK}\n\n```json\n{{"name": "now", "arguments": {{}}}}\n```', form, held)
    assert two == [*calls, ("now", {})] and not content


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "text",
    [
        BLOCK.replace("write-file", "write"),
        BLOCK.replace("write-file", "write-files"),
        '```json\n{"name": "now"}\n```',
        '```json\n{"name": "now", "arguments": "{}"}\n```',
        '```json\n{"name": "now", "arguments": [1]}\n```',
        '```json\n{"name": "now", "arguments": {}, "id": 5}\n```',
        '```json\n{"name": "now", "arguments": {}} and more\n```',
        '```json\n{"a": 1, "name": "now"}\n```',
        '```json\n[{"name": "now", "arguments": {}}]\n```',
        '```json\n{"name": "now", "arguments": {',
        BLOCK.replace("json", "python"),
        "```json",
        "``",
    ],
)
def test_any_other_code_is_text(text: str, form: str, held: bool) -> None:
    said = f"So:\n\n{text}\n\nAnd so on."
    assert read(said, form, held) == ([], said)
    assert read(text, form, held) == ([], text)


def test_without_tools_code_is_code() -> None:
    assert parse_tool_calls(BLOCK).content == BLOCK
    assert parse_tool_calls(BLOCK, TOOLS, form=form_of("minicpm5")).content == BLOCK  # whose calls are tags
    stream = ReplyStream(marks=MARKS)
    assert "".join(part.content for part in stream.push(BLOCK) + stream.finish()) == BLOCK


def test_marked_calls_beside_blocks_are_read() -> None:
    marked = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    for text, count in (
        (f"{BLOCK}\n{marked}", 2),
        (f"```json\n{{}}\n```\n{marked}", 1),
        (f"{marked}\n{BLOCK}", 2),
    ):
        assert len(read(text, "qwen2_5", False)[0]) == count


def test_what_cannot_be_a_call_is_not_held_back() -> None:
    stream = ReplyStream(marks=MARKS, tools=[WRITE], form=form_of("qwen2_5"), held=True)
    said = ""
    for char in 'Look:\n```json\n{"a": ':
        said += "".join(part.content for part in stream.push(char))
    assert said == 'Look:\n```json\n{"a":'


def test_what_is_drafted_while_thinking_is_no_call() -> None:
    reply = parse_tool_calls(f"<think>{BLOCK}</think>No.", TOOLS, form=form_of("qwen3"))
    assert (reply.calls, reply.content) == ((), "No.")


def test_whatever_comes_nothing_is_raised() -> None:
    rng = random.Random(3)
    for seed in range(300):
        made = list(f"a {BLOCK} b {BLOCK}")
        for _ in range(rng.choice((1, 2, 9))):
            made[rng.randrange(len(made))] = rng.choice(["`", "```", "{", '"', "\n", "", "json"])
        read_text = "".join(made)
        parse_tool_calls(read_text, TOOLS, form=form_of("qwen2_5"))
        parts_of(read_text, seed, form=form_of("qwen2_5"), held=bool(seed % 2))
