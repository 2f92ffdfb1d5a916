"""Tool calls read as data; what cannot be read stays text."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.text import ToolCall, parse_tool_calls
from minicpm4.text.pycalls import CallSyntaxError, parse_calls


def block(source: str, fence: str = "```python\n{}\n```\n") -> str:
    return "<|tool_call_start|>\n" + fence.format(source) + "<|tool_call_end|>\n"


def test_a_whole_reply():
    text = "<|thought_start|>\nneed it\n<|thought_end|>\nBefore. " + block('read_file(path="/a")') + "After."
    reply = parse_tool_calls(text)
    assert reply.calls == (ToolCall(name="read_file", arguments={"path": "/a"}),)
    assert (reply.thought, reply.notes) == ("need it", ())
    assert reply.content == "Before. \nAfter."


@pytest.mark.parametrize(
    ("source", "name", "arguments"),
    [
        ("f()", "f", {}),
        ("f(a=1,)", "f", {"a": 1}),
        ("get-weather(city='Paris')", "get-weather", {"city": "Paris"}),
        ("mcp.fs-2.read(max-results=3)", "mcp.fs-2.read", {"max-results": 3}),
        (
            "f(from='a', class=2, import=[1], None_=1)",
            "f",
            {"from": "a", "class": 2, "import": [1], "None_": 1},
        ),
        ("f(x=-1, y=+2.5, z=[-1, (2, -3)])", "f", {"x": -1, "y": 2.5, "z": [-1, (2, -3)]}),
        ("f(a=True, b=None, c=false, d=null)", "f", {"a": True, "b": None, "c": False, "d": None}),
        ("f(a={'k': {'x': [1]}, 2: ()})", "f", {"a": {"k": {"x": [1]}, 2: ()}}),
        ("f(s='it\\'s, (fine) = ok]', t=\"# no\")", "f", {"s": "it's, (fine) = ok]", "t": "# no"}),
        ("f(s='''two\nlines''')  # comment", "f", {"s": "two\nlines"}),
        ("f(\n    a=1,\n    b=[\n        2,\n    ],\n)", "f", {"a": 1, "b": [2]}),
        ("f(s='a' 'b', r=r'\\d')", "f", {"s": "ab", "r": "\\d"}),
        ("f(s='\\d')", "f", {"s": "\\d"}),
        ("搜索(查询='天气')", "搜索", {"查询": "天气"}),
        ("  f(a=1)", "f", {"a": 1}),
    ],
)
@pytest.mark.parametrize("fence", ["```python\n{}\n```\n", "```\n{}```", "{}\n", "```py\n{}\n"])
def test_literals_and_names(source, name, arguments, fence):
    reply = parse_tool_calls(block(source, fence))
    assert reply.notes == () and reply.content == ""
    assert [(call.name, call.arguments) for call in reply.calls] == [(name, arguments)]


def test_several_calls_and_blocks():
    reply = parse_tool_calls(block("a(x=1)\nb(y=2); c()") + "then" + block("d()"))
    assert [call.name for call in reply.calls] == ["a", "b", "c", "d"] and reply.content == "then"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("f(a=__import__('os'))", "is not a literal: Call is not allowed"),
        ("f(a=x)", "Name is not allowed"),
        ("f(a=f'{x}')", "JoinedStr is not allowed"),
        ("f(a=b'x')", "Constant is not allowed"),
        ("f(a=1j)", "Constant is not allowed"),
        ("f(a=1e999)", "a number is out of range"),
        ("f(a={**{}})", r"\*\* is not allowed"),
        ("f(a={[]: 1})", "unhashable"),
        ("f(a=-'x')", "a sign stands before something that is no number"),
        ("f(a=[1)", "not Python"),
        ("f(a=)", "an argument has no value"),
        ("f(a=1 b=2)", "is not a literal"),
        ("f(a=1, a=2)", "f has the argument a twice"),
        ("f(1)", "f has 1 arguments without names"),
        ("f(a=1, 2)", "without a name"),
        ("f(a=1", "not Python"),
        ("x = f()", "'x=f' is not a name"),
        ("f() + g()", "'\\+' follows the call of f"),
        ("two words()", "'twowords' is not a name"),
        ("hello", "'hello' is not a call"),
        ("", "the block holds no call"),
        ("f(a=" + "[" * 300 + "]" * 300 + ")", "is not a literal|nested|too many"),
        ("f(a=" + "[" * 80 + "]" * 80 + ")", "nested over 64 levels deep"),
        ("f(a=" + "9" * 5000 + ")", "is not a literal"),
        ("f()\n" * 129, "more than 128 calls"),
        ("f" * 300 + "()", "is not a name"),
        ("f(a='" + "x" * (1 << 18) + "')", "characters of calls are over 262144"),
    ],
)
def test_what_cannot_be_read_stays_text(source, reason):
    text = "say " + block(source) + "more"
    reply = parse_tool_calls(text)
    assert reply.calls == () and reply.content == text
    assert re.search(f"a tool call could not be read: .*({reason})", reply.notes[0])


def test_positional_arguments_take_names_from_the_tools():
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"p": {}, "q": {}}}}}
    reply = parse_tool_calls(block("f(1, q=2)"), [tool])
    assert reply.calls == (ToolCall(name="f", arguments={"p": 1, "q": 2}),)
    assert "p twice" in parse_tool_calls(block("f(1, p=2)"), [tool]).notes[0]


def test_end_marker_inside_a_string_and_missing_end():
    assert parse_tool_calls(block("f(a='<|tool_call_end|>')")).calls[0].arguments == {
        "a": "<|tool_call_end|>"
    }
    assert parse_tool_calls("<|tool_call_start|>\n```python\nf(a=1)\n```").calls[0].arguments == {"a": 1}
    assert parse_tool_calls("<|tool_call_start|>\n```python\nf(a=").calls == ()


def test_json_calls():
    reply = parse_tool_calls(
        'Hi <tool_call>\n{"name": "f", "arguments": {"a": [1, null]}}\n</tool_call> there'
    )
    assert reply.calls == (ToolCall(name="f", arguments={"a": [1, None]}),)
    assert reply.content == "Hi  there"
    two = parse_tool_calls('<tool_call>[{"name":"f"},{"name":"g","arguments":"{\\"a\\":1}"}]</tool_call>')
    assert [(c.name, c.arguments) for c in two.calls] == [("f", {}), ("g", {"a": 1})]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{", "not JSON"),
        ('{"name": "f", "arguments": {"a": NaN}}', "NaN is not allowed"),
        ('{"arguments": {}}', "the JSON has no name"),
        ('{"name": "f", "arguments": [1]}', "arguments of f are a list, not a table"),
        ("[]", "the block holds no call"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_json_that_cannot_be_read(source, reason):
    text = f"<tool_call>{source}</tool_call>"
    reply = parse_tool_calls(text)
    assert reply.content == text and reason in reply.notes[0]


def test_limits():
    huge = parse_tool_calls("x" * ((1 << 20) + 1))
    assert not huge.calls and "over 1048576" in huge.notes[0]
    assert len(parse_tool_calls(block("f()") * 70).calls) == 64


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(value=values)
def test_any_value_comes_back(value):
    json.dumps(value)
    assert parse_calls(f"f(x={value!r})") == [("f", [], {"x": value})]


@settings(max_examples=300)
@given(source=st.text("fa(=)[]{}'\"\\\n ,1-.#;x", max_size=40) | st.text(max_size=30))
def test_any_source_is_read_or_refused(source):
    try:
        parse_calls(source)
    except CallSyntaxError:
        return
