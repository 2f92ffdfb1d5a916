"""Calls held to their tools' schemas, in each model's own format, whatever is drawn."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.engine.calls import Calls
from minicpm4.engine.grammar import Grammars
from minicpm4.errors import ConfigError, RequestError
from minicpm4.testing import EOS, byte_text
from minicpm4.text.probes import CALL_ID
from tests.engine.calling import (
    ASK,
    HELD,
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
from tests.text.call_templates import KINDS, NEWER
from tests.text.chats import sources


@pytest.mark.parametrize("name", [*KINDS, *NEWER])
def test_forced_calls_are_valid_whatever_is_drawn(name: str) -> None:
    names = set()
    with llm_of(name, NOISE) as llm:
        for seed in range(12):
            out = llm.chat(ASK, params(Calls(tools=TOOLS, forced=True), seed=seed), tools=TOOLS)
            if out.finish_reason == "length":  # in a long text
                continue
            assert out.finish_reason == "stop" and out.tool_calls and not out.outputs[0].reply.content
            for call in out.tool_calls:
                check(call.name, call.arguments)
                names.add(call.name)
    assert names == {"book", "now"}


@pytest.mark.parametrize("name", KINDS)
def test_a_named_tool_alone_is_called_once(name: str) -> None:
    calls = Calls(tools=TOOLS, forced=True, several=False, names=["now"])
    with llm_of(name, NOISE) as llm:
        out = llm.chat(ASK, params(calls), tools=TOOLS)
        (call,) = out.tool_calls
        assert (call.name, call.arguments, out.finish_reason) == ("now", {}, "stop")
        assert llm.engine.limits and out.metrics.new_tokens > 10


@pytest.mark.parametrize("name", [*KINDS, *NEWER])
def test_a_call_that_the_model_opens_is_held(name: str) -> None:
    bare = opening(name).startswith(("{", "["))
    script = ("" if bare else "Well: ") + opening(name) + NOISE[:600]
    found = 0
    with llm_of(name, script) as llm:
        for seed in range(12):
            out = llm.chat(ASK, params(Calls(tools=TOOLS), seed=seed), tools=TOOLS)
            for call in out.tool_calls[:1]:
                check(call.name, call.arguments)
                found += 1
            if out.finish_reason == "stop" and not bare:
                assert out.outputs[0].reply.content.startswith("Well:")
    assert found == 12 if bare else found > 6


@pytest.mark.parametrize("name", [*KINDS, *NEWER])
def test_behind_a_call_the_answer_is_free(name: str) -> None:
    with llm_of(name) as llm:
        form = llm._text.replies.form  # type: ignore[attr-defined]
    if form.is_bare:
        pytest.skip("the answer ends with it")
    given = (f"{CALL_ID}{form.id_after}" if form.id_after else "") + ("{}" if form.is_json else "")
    given += f"{form.id_before}{CALL_ID}" if form.id_before else ""
    call = form.before + "now" + form.middle + given + form.after
    for several, expected in ((True, f"a {call} b \0"), (False, f"a {call}")):
        with llm_of(name, f"a {call} b \0") as llm:
            out = llm.chat(ASK, params(Calls(tools=TOOLS, several=several), skip_special_tokens=False))
            assert out.text == expected and out.finish_reason == "stop"


@pytest.mark.parametrize(
    "text", ['{"name": "Bob"}', '{"name": "now\\u0021"}', "now", '{"name": "now", "age": 5}', "{"]
)
def test_free_json_is_not_held_where_it_is_no_call(text: str) -> None:
    with llm_of("llama3_1", text) as llm:
        out = llm.chat(ASK, params(Calls(tools=TOOLS), temperature=0.0), tools=TOOLS)
        held = text.startswith('{"name": "now"')
        assert (out.text == text) != held  # a tool's whole name opens its call


def test_a_call_whose_marks_are_forgotten_is_held() -> None:
    with llm_of("qwen2_5", '{"name": "book"' + NOISE[:900]) as llm:
        for seed in range(5):
            out = llm.chat(ASK, params(Calls(tools=TOOLS), seed=seed), tools=TOOLS)
            ((call,), reason) = out.tool_calls, out.finish_reason
            check(call.name, call.arguments)
            assert reason == "stop" and out.text.startswith('{"name": "book", "arguments": {')
    for text in ('{"name": "Bob"}', '{"name": "bookkeeper", "age": 5}', ' {"name": "boo'):
        with llm_of("qwen2_5", text) as llm:
            assert llm.chat(ASK, params(Calls(tools=TOOLS)), tools=TOOLS).text == text


def test_a_call_behind_the_python_tag_is_held() -> None:
    with llm_of("llama3_1", "<|python_tag|>" + NOISE[:900]) as llm:
        for seed in range(5):
            out = llm.chat(ASK, params(Calls(tools=TOOLS), seed=seed), tools=TOOLS)
            check(out.tool_calls[0].name, out.tool_calls[0].arguments)


def test_what_is_drafted_while_thinking_is_free() -> None:
    script = "<think>maybe <tool_call>nothing</tool_call></think>So no."
    with llm_of("qwen3", script) as llm:
        out = llm.chat(ASK, params(Calls(tools=TOOLS), temperature=0.0), tools=TOOLS)
        assert out.text == script and out.tool_calls == ()


def test_a_forced_call_waits_for_the_thought() -> None:
    with llm_of("qwq", "hm, so</think>" + NOISE) as llm:
        out = llm.chat(ASK, params(Calls(tools=TOOLS, forced=True), seed=1), tools=TOOLS)
        assert out.reasoning == "hm, so" and out.tool_calls


def test_tokens_without_a_choice_take_no_step() -> None:
    engine = engine_of("qwen2_5", "<tool_call>")
    rows: list[int] = []
    execute = engine._runner.execute
    engine._runner.execute = lambda plan: (rows.append(plan.num_rows), execute(plan))[1]  # type: ignore[method-assign]
    with LLM.over(engine, engine.text, name="x") as llm:
        out = llm.chat(ASK, params(Calls(tools=[NOW], several=False), temperature=0.0), tools=[NOW])
    assert out.text == '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert out.metrics.new_tokens == len(out.text) and len(rows) - 1 <= len("<tool_call>") + 1


@pytest.mark.parametrize("forced", [True, False])
def test_calls_of_models_of_no_format_are_read_as_they_are_held(forced: bool) -> None:
    calls = Calls(tools=TOOLS, forced=forced, several=False)
    with llm_of("none", ("" if forced else "<tool_call>") + NOISE[:900]) as llm:
        for seed in range(3):
            out = llm.chat(ASK, params(calls, seed=seed))
            assert len(out.tool_calls) == 1 and not out.outputs[0].reply.content
            check(out.tool_calls[0].name, out.tool_calls[0].arguments)


@pytest.mark.parametrize("name", ["none", "qwen2_5"])
def test_models_of_no_format_know_hermes_or_plain_json(name: str) -> None:
    form = engine_of(name).text.replies.written_form(forced=True)
    assert form.is_bare == (name == "none")
    with llm_of(name, "x <tool_call>" + NOISE[:900]) as llm:
        out = llm.chat(ASK, params(Calls(tools=[NOW], several=False), seed=3), tools=[NOW])
        lines = out.text.replace("\n", "") if name == "none" else out.text
        call = HELD.replace("\n", "") if name == "none" else HELD
        assert lines == f"x {call}"


def test_one_call_at_most_is_told_whatever_its_marks() -> None:
    with llm_of("qwen2_5", "<|tool_call_start|>\n```python\nnow()\nnow()\n```\n<|tool_call_end|>") as llm:
        for several, count in ((True, 2), (False, 1)):
            asked = params(Calls(tools=TOOLS, several=several), temperature=0.0)
            assert len(llm.chat(ASK, asked, tools=TOOLS).tool_calls) == count


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tools": []}, "not a list of 1 to"),
        ({"tools": TOOLS, "names": ["other"]}, "other"),
        ({"tools": [{"type": "function"}]}, "name no function"),
    ],
)
def test_what_is_no_calls_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Calls(**given)


def test_calls_beside_other_settings() -> None:
    calls = Calls(tools=TOOLS)
    assert SamplingParams(calls=calls, min_tokens=3, ignore_eos=True).constraint == "calls"
    with pytest.raises(ConfigError, match="min_tokens"):
        SamplingParams(calls=Calls(tools=TOOLS, forced=True), min_tokens=3)
    with pytest.raises(ConfigError, match="together"):
        SamplingParams(calls=calls, regex="a", choice=["a"])
    with pytest.raises(ConfigError, match="is not Calls"):
        SamplingParams(calls=TOOLS)  # type: ignore[arg-type]


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "minicpm5", "qwq"])
def test_what_is_taken_back_was_never_there(name: str, forced: bool) -> None:
    script = f"a</think>{opening(name) if not forced else ''}".encode()
    asked = params(Calls(tools=TOOLS, forced=forced))
    assert check_undo(name, asked, lambda turn: script, turns=200, far=0.03) > 25


def test_tokens_that_run_past_a_mark_are_held_to_what_follows() -> None:
    text = byte_text(sources()["qwen2_5"], ("l>\n", "l>{"))
    grammars = Grammars(text, text.end_ids, 262)
    grammar = grammars.start(params(Calls(tools=TOOLS)), text.encode_chat(ASK))
    assert grammar is not None
    for byte in b"<tool_cal":
        grammar.accept(byte)
    allowed = masks(grammar, 262) == 0
    assert allowed[260] and not allowed[261] and allowed[ord("l")] and allowed[EOS]
    grammar.accept(260)
    assert np.flatnonzero(masks(grammar, 262) == 0).tolist() == [ord("{")]
    grammar.undo(1)
    assert masks(grammar, 262)[ord("z")] == 0


def test_it_says_which_calls_it_has_compiled() -> None:
    text = byte_text(sources()["qwen2_5"])
    grammars = Grammars(text, text.end_ids, 260)
    first = params(Calls(tools=TOOLS))
    grammars.check(first)
    kept = len(grammars._kept)
    grammars.check(params(Calls(tools=json.loads(json.dumps(TOOLS)))))
    assert len(grammars._kept) == kept
    with pytest.raises(RequestError):
        grammars.check(params(Calls(tools=[UNFOLLOWED])))
