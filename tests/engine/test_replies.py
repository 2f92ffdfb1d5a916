"""The answer of a chat comes taken apart."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from minicpm4 import LLM, AsyncLLM, SamplingParams
from minicpm4.testing import ScriptedEngine
from minicpm4.text.toolcalls import ToolCall

ANSWER = '<think>Rain?</think>See.<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
MESSAGES = [{"role": "user", "content": "Will it rain in Oslo?"}]
CALLS = (ToolCall(name="weather", arguments={"city": "Oslo"}),)


def test_calls_and_reasoning_stand_beside_the_text() -> None:
    engine = ScriptedEngine([ANSWER, ANSWER, "plain"])
    llm = LLM.over(engine, engine.text, name="scripted")
    out = llm.chat(MESSAGES, SamplingParams(max_tokens=200, temperature=0))
    assert out.tool_calls == CALLS and out.reasoning == "Rain?" and out.text == ANSWER
    several = llm.chat(MESSAGES, SamplingParams(max_tokens=200, n=2, seed=1))
    assert [one.reply is not None and one.reply.calls for one in several.outputs] == [CALLS, CALLS]
    plain = llm.chat(MESSAGES, SamplingParams(max_tokens=20))
    assert plain.tool_calls == () and plain.reasoning == "" and plain.text == "plain"
    assert llm.generate("text", SamplingParams(max_tokens=5)).tool_calls == ()


@pytest.mark.parametrize("stops", [{"stop": "STOP"}, {"stop_token_ids": [ord("S")]}, {}])
@pytest.mark.parametrize("special", [["<think>", "</think>"], []])
@pytest.mark.parametrize("thought", ["<think>Rain?</think>", ""])
def test_what_ended_the_answer_is_no_part_of_it(
    stops: dict[str, Any], special: list[str], thought: str
) -> None:
    engine = ScriptedEngine([f"{thought}It will. STOP", f"{thought}It will. STOP it"], tokens=special)
    llm = LLM.over(engine, engine.text, name="scripted")
    for rest in ("STOP", "STOP it"):
        out = llm.chat(MESSAGES, SamplingParams(max_tokens=200, temperature=0, **stops))
        told = f"It will. {'' if stops else rest}".strip()
        reply = out.outputs[0].reply
        assert reply is not None and (reply.content, reply.thought) == (told, "Rain?" if thought else "")
        assert llm.parse_reply(out) == reply


def test_of_a_task_s_chat_too() -> None:
    async def ask() -> None:
        engine = ScriptedEngine([ANSWER])
        async with AsyncLLM.over(engine, engine.text, name="scripted") as llm:
            out = await llm.chat(MESSAGES, SamplingParams(max_tokens=200, temperature=0))
            assert out.tool_calls == CALLS and out.reasoning == "Rain?"

    asyncio.run(ask())


MARKED = "<think>Rain?</think>It will. <|pad|>"


@pytest.mark.parametrize(
    ("stop", "told"),
    [
        ("think", ("Rain?", "It will.")),  # of no text but that of marks
        (">It", ("Rain?", "It will.")),
        ("?It", ("Rain", "")),  # and marks do not keep it apart
        ("</think>It", ("Rain?", "")),  # unless it names them
        ("<think>", ("", "")),
        ("<|pad|>", ("Rain?", "It will.")),
    ],
)
def test_stops_beside_marks_that_are_special_tokens(stop: str, told: tuple[str, str]) -> None:
    """Read whole, and while it is written: what is hidden of a text does not stop it."""
    engine = ScriptedEngine([MARKED, MARKED], tokens=["<think>", "</think>", "<|pad|>"])
    llm = LLM.over(engine, engine.text, name="scripted")
    params = SamplingParams(max_tokens=len(MARKED), temperature=0, stop=stop)
    reply = llm.chat(MESSAGES, params).outputs[0].reply
    assert reply is not None and (reply.thought, reply.content.strip()) == told
    ids, params = llm.chat_ids(MESSAGES), replace(params, shows_marks=True)
    stream, parts = llm.reply_stream(ids, params), []
    for piece in llm.stream(ids, params):
        parts += stream.push(piece.text)
    parts += stream.finish()
    assert ("".join(one.reasoning for one in parts), "".join(one.content for one in parts).strip()) == told
