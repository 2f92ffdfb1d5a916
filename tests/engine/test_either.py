"""Answers that are calls or a text of a given form: whichever the model begins, it is held to that."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest

from minicpm4 import Calls, SamplingParams
from minicpm4.engine.grammar import Grammars
from minicpm4.errors import ConfigError, RequestError, ToolSchemaError
from minicpm4.testing import byte_text
from tests.engine.calling import (
    ASK,
    BOOK,
    NOISE,
    NOW,
    TOOLS,
    UNFOLLOWED,
    check,
    check_undo,
    engine_of,
    llm_of,
    masks,
    opening,
    params,
)
from tests.text.call_templates import KINDS
from tests.text.chats import sources

PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Bob", "now"]}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def either(schema: Any = PERSON, *, several: bool = True, **given: Any) -> SamplingParams:
    return params(Calls(tools=TOOLS, several=several), json_schema=schema, **given)


@pytest.mark.parametrize("name", [*KINDS, "none"])
def test_an_answer_is_calls_or_has_its_form_whatever_is_drawn(name: str) -> None:
    """Each is begun as the model's, then anything is drawn."""
    form = engine_of(name).text.replies.written_form(forced=False)
    begun = {"text": '{"name": "Bob"', "call": form.heads(["now"])[0]}
    for kind, start in begun.items():
        with llm_of(name, start + NOISE) as llm:
            whole = 0
            for seed in range(8):
                out = llm.chat(ASK, either(seed=seed), tools=TOOLS)
                reply = out.outputs[0].reply
                if out.finish_reason == "length":
                    continue
                whole += 1
                assert out.finish_reason == "stop" and bool(out.tool_calls) == (kind == "call")
                if kind == "text":
                    jsonschema.validate(json.loads(reply.content), PERSON)
                else:
                    assert not reply.content
                for call in out.tool_calls:
                    check(call.name, call.arguments)
            assert whole > 2


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1"])
def test_nothing_stands_beside_either(name: str) -> None:
    with llm_of(name, "Let me see.") as llm:
        for seed in range(12):
            out = llm.chat(ASK, either(seed=seed, temperature=1.0), tools=TOOLS)
            assert not out.text.startswith("Let")
            assert out.finish_reason == "length" or out.tool_calls or json.loads(out.text)["name"]


def test_a_text_may_spell_a_call() -> None:
    said = {"a": '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'}
    with llm_of("qwen2_5", json.dumps(said)) as llm:
        out = llm.chat(ASK, either(True, temperature=0.0), tools=TOOLS)
        assert json.loads(out.outputs[0].reply.content) == said and not out.tool_calls


@pytest.mark.parametrize(("name", "word"), [("llama3_1", "parameters"), ("qwen2_5", "arguments")])
def test_what_begins_like_a_call_without_marks_is_one(name: str, word: str) -> None:
    """Of Llama all calls; small models forget the marks of others."""
    begins = f'{{"name": "now", "{word}": {{'
    with llm_of(name, begins + '"not": "its own"}}') as llm:
        for several in (True, False):
            out = llm.chat(ASK, either(True, several=several, temperature=0.0), tools=TOOLS)
            assert [(one.name, one.arguments) for one in out.tool_calls] == [("now", {})]
            assert out.finish_reason == "stop" and not out.outputs[0].reply.content


@pytest.mark.parametrize("name", ["llama3_1", "qwen2_5"])
def test_what_begins_otherwise_is_text(name: str) -> None:
    for text in ('{"name": "now", "age": 5}', '{"name": "Bob", "age": 5}'):
        with llm_of(name, text) as llm:
            out = llm.chat(ASK, either(temperature=0.0), tools=TOOLS)
            assert out.outputs[0].reply.content == text and not out.tool_calls


def test_no_text_begins_like_a_call_and_is_none() -> None:
    """Bytes of a mark spell it too, where calls are held to its token."""
    text = byte_text(sources()["qwen2_5"], ("<tool_call>", "</tool_call>"))
    grammars = Grammars(text, text.end_ids, 262)
    grammar = grammars.start(params(Calls(tools=TOOLS), regex="<tool_call.*"), text.encode_chat(ASK))
    assert grammar is not None
    assert set(np.flatnonzero(masks(grammar, 262) == 0)) == {260, ord("<"), ord("{")}
    for byte in b"<tool_call":
        grammar.accept(byte)
    allowed = masks(grammar, 262) == 0
    assert not allowed[ord(">")] and not allowed[260] and allowed[ord("s")]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"regex": "[a-z]{3}"}, "abc"),
        ({"choice": ["yes", "no"]}, "yes"),
        ({"grammar": 'start: "ab"+'}, "abab"),
    ],
)
def test_any_form_may_stand_beside_calls(form: dict[str, Any], text: str) -> None:
    for script in (text, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'):
        with llm_of("qwen2_5", script) as llm:
            asked = params(Calls(tools=TOOLS), temperature=0.0, **form)
            out = llm.chat(ASK, asked, tools=TOOLS)
            assert out.text == script and len(out.tool_calls) == (script != text)


def test_the_thought_comes_first() -> None:
    for answer, calls in (('{"name": "Bob", "age": 5}', 0), (opening("qwq") + NOISE[:900], 1)):
        with llm_of("qwq", f"hm, <tool_call> or not?</think>{answer}") as llm:
            out = llm.chat(ASK, either(several=False, seed=1), tools=TOOLS)
            assert out.reasoning == "hm, <tool_call> or not?" and len(out.tool_calls) == calls


def test_one_call_or_several() -> None:
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    for several, count in ((True, 2), (False, 1)):
        with llm_of("qwen2_5", f"{call}\n{call}") as llm:
            out = llm.chat(ASK, either(several=several, temperature=0.0), tools=TOOLS)
            assert len(out.tool_calls) == count and out.text == "\n".join([call] * count)


def test_long_numbers_end_in_either() -> None:
    for name in ("qwen2_5", "minicpm5"):
        with llm_of(name, '{"name": "Bob", "age": ' + "1" * 500 + "}") as llm:
            out = llm.chat(ASK, either(temperature=0.0), tools=TOOLS)
            assert len(re.findall("1+", out.text)[0]) <= (20 if name == "qwen2_5" else 21)


def test_what_is_wrong_is_named() -> None:
    with llm_of("qwen2_5") as llm:
        with pytest.raises(RequestError, match="json_schema at #/not"):
            llm.generate("x", either({"not": {}}))
        with pytest.raises(ToolSchemaError, match="'odd'"):
            llm.generate("x", params(Calls(tools=[NOW, UNFOLLOWED]), json_schema=True))
    with pytest.raises(ConfigError, match="together"):
        SamplingParams(calls=Calls(tools=TOOLS, forced=True), regex="a")
    with pytest.raises(ConfigError, match="min_tokens"):
        SamplingParams(calls=Calls(tools=TOOLS), regex="a", min_tokens=3)


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "minicpm5", "qwq"])
def test_what_is_taken_back_was_never_there(name: str) -> None:
    asked = params(Calls(tools=[BOOK, NOW]), json_schema=True)
    begun = (b'{"name": "now", "p', b'{"name": "nox')
    check_undo(name, asked, lambda turn: b"a</think>" + begun[turn // 20 % 2], turns=160, far=0.1)
