"""Schemas of tools: those that cannot be followed are refused by name, hostile ones cost nothing."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import jsonschema
import pytest

from minicpm4.engine.calls import Calls
from minicpm4.errors import RequestError, ToolSchemaError
from tests.engine.calling import (
    BOOK,
    NOISE,
    NOW,
    UNFOLLOWED,
    llm_of,
    params,
)
from tests.text.call_templates import KINDS
from tests.text.chats import tool

ONE_BY_ONE = {
    "type": "function",
    "function": {"name": "either", "parameters": {"anyOf": [{"type": "object"}]}},
}


def with_parameters(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", **parameters}}}


HOSTILE_PATTERN = 'a/ T0: /b/ x: "'
HOSTILE = tool("hostile", "", [], a={"type": "string", "pattern": HOSTILE_PATTERN})
LONG_TEXT = tool("long", "", [], a={"type": "string", "maxLength": 100_000})
FORMATTED = tool("formatted", "", [], a={"type": "string", "format": "hostname"})


@pytest.mark.parametrize(
    ("name", "refused", "why"),
    [
        ("qwen2_5", UNFOLLOWED, "Unimplemented keys"),
        ("minicpm3", ONE_BY_ONE, "#/anyOf"),
        ("minicpm5", ONE_BY_ONE, "#/anyOf"),
        ("minicpm5", LONG_TEXT, "maxLength"),
        ("minicpm5", tool("bad", "", [], a={"type": "string", "pattern": "("}), "cannot be followed"),
        ("minicpm5", tool('a"b', "", []), "name"),
        ("minicpm5", FORMATTED, "hostname"),
        ("minicpm5", tool("list", "", [], a={"type": "string", "format": ["x"]}), "format"),
        ("minicpm3", with_parameters("one", properties=[1]), "properties"),
        ("minicpm3", tool("get-", "", []), "the name 'get-' cannot be written"),
        ("minicpm3", tool("one", "", [], **{"a.1": {}}), "the name 'a.1' cannot be written"),
        ("minicpm5", with_parameters("one", properties={}, required=5), "required"),
    ],
)
@pytest.mark.parametrize("forced", [True, False])
def test_schemas_that_cannot_be_followed_are_refused_by_name(
    name: str, refused: dict[str, Any], why: str, forced: bool
) -> None:
    calls = Calls(tools=[NOW, refused, BOOK], forced=forced)
    with llm_of(name) as llm, pytest.raises(ToolSchemaError, match=re.escape(why)) as caught:
        llm.generate("x", params(calls))
    assert caught.value.tools == (refused["function"]["name"],)
    assert repr(refused["function"]["name"]) in str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_names_and_texts_of_any_script(name: str) -> None:
    function = tool("天气", "d", ["城市"], 城市={"enum": ["东京", "Zürich"]}, ё={"type": "boolean"})
    function["function"]["parameters"]["additionalProperties"] = False
    with llm_of(name, NOISE) as llm:
        for seed in range(3):
            calls = Calls(tools=[function], forced=True, several=False)
            out = llm.generate("x", params(calls, seed=seed))
            (call,) = llm.parse_reply(out, [function]).calls
            jsonschema.validate(call.arguments, function["function"]["parameters"])
            assert call.name == "天气"


def test_hostile_schemas_take_no_time() -> None:
    refs = [{"$ref": f"#/$defs/d{i}"} for i in range(12)]
    around = {f"d{i}": {"anyOf": refs} for i in range(12)}
    circle = tool("circle", "", [], **{f"a{i}": {"anyOf": refs} for i in range(40)})
    circle["function"]["parameters"]["$defs"] = {**around, "long": {"const": "x" * 50_000}}
    itself = {"type": "function", "function": {"name": "itself", "parameters": {"$ref": "#"}}}
    for name in ("minicpm5", "minicpm3"):
        for one in (circle, itself):
            with llm_of(name) as llm, suppress(RequestError):
                llm.generate("x", params(Calls(tools=[one], forced=True), max_tokens=2))


def test_a_pattern_is_nothing_but_a_pattern() -> None:
    with llm_of("minicpm5", NOISE) as llm:
        for seed in range(8):
            out = llm.generate("x", params(Calls(tools=[HOSTILE], forced=True, several=False), seed=seed))
            if out.finish_reason == "length":
                continue
            (call,) = llm.parse_reply(out, [HOSTILE]).calls
            assert call.arguments == {} or re.search(HOSTILE_PATTERN, call.arguments["a"])


@pytest.mark.parametrize("name", KINDS)
def test_a_loose_tool_is_held_to_its_name_and_form(name: str) -> None:
    calls = Calls(tools=[UNFOLLOWED, LONG_TEXT, ONE_BY_ONE], forced=True, loose=["odd", "long", "either"])
    with llm_of(name, NOISE) as llm:
        for seed in range(6):
            out = llm.generate("x", params(calls, seed=seed))
            if out.finish_reason == "stop":
                found = llm.parse_reply(out, calls.tools).calls
                assert found and {one.name for one in found} <= {"odd", "long", "either"}
