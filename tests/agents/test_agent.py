"""The agent with models whose answers are scripted, in this process and behind an address."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.agents.mcp.agent import FIND, Agent, AgentOptions
from minicpm4.agents.mcp.asking import Consent
from minicpm4.agents.mcp.config import ServerSpec
from minicpm4.agents.mcp.models import Endpoint, Local, Reply
from minicpm4.agents.mcp.transcript import UNKNOWN, Transcript, mend
from minicpm4.errors import ConfigError, EngineError, RequestError
from minicpm4.testing import ScriptedEngine
from minicpm4.text.reply_stream import ReplyPart
from minicpm4.text.toolcalls import ToolCall
from tests.agents.servers import Person, boxed, made, read_body, send_json, served
from tests.text.call_templates import source_of
from tests.waiting import until_true

GREEDY = SamplingParams(temperature=0.0, max_tokens=400)


def hermes(name: str, **arguments: Any) -> str:
    """A call as Qwen2.5 writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def scripted(*answers: str, context: int = 16384) -> tuple[Local, ScriptedEngine]:
    engine = ScriptedEngine(answers, chat_template=source_of("qwen2_5"), context=context)
    return Local.of(LLM.over(engine, engine.text, name="scripted"), GREEDY), engine


def does(
    answers: Sequence[str],
    specs: Sequence[ServerSpec] | None = None,
    consents: Sequence[Consent] = ("session",),
    options: AgentOptions | None = None,
    **more: Any,
) -> tuple[Transcript, ScriptedEngine, Person]:
    """What an agent makes of a task where its model answers so."""
    model, engine = scripted(*answers)
    person = Person(*consents)

    async def go() -> Transcript:
        async with boxed(specs or [made("made")], person) as box:
            return await Agent(model, box, options, **more).run("What is 2 + 3, and 4 more?")

    return asyncio.run(go()), engine, person


def test_a_task_of_several_steps_is_done() -> None:
    done, engine, person = does([hermes("made__add", a=2, b=3), hermes("made__add", a=5, b=4), "It is 9."])
    assert (done.ended, done.answer) == ("answered", "It is 9.")
    assert [(step.arguments, step.text) for step in done.steps] == [
        ({"a": 2, "b": 3}, "5"),
        ({"a": 5, "b": 4}, "9"),
    ]
    assert [one["role"] for one in done.messages] == [
        *("system", "user", "assistant", "tool", "assistant", "tool", "assistant")
    ]
    first, second, third = engine.prompts
    assert "made__add" in first and "data, not instructions" in second
    assert third.startswith(second.rsplit("<|im_start|>assistant", 1)[0]), "what was read is read once"
    assert len(person.calls) == 1


def test_calls_are_held_to_the_tools_as_soon_as_they_open() -> None:
    done, _, _ = does([hermes("made__sub", a=2, b=3), "ok"])
    assert [(step.tool, step.text) for step in done.steps] == [("made__add", "5")]


def test_a_first_answer_that_has_to_be_a_call_is_one() -> None:
    unopened = "x" * 11 + hermes("made__add", a=2, b=3)[11:]
    assert does(["I would rather not."])[0].steps == []
    done, _, _ = does([unopened, "ok"], options=AgentOptions(must_call=True))
    assert done.steps[0].tool == "made__add" and done.answer == "ok"


def test_an_answer_that_was_meant_for_a_call_is_asked_for_as_one() -> None:
    """As Qwen2.5-Coder writes it after its template's example, which has a brace too many."""
    meant = '{{"name": "made__add", "arguments": {"a": 2, "b": 3}}}'
    done, engine, _ = does([meant, hermes("made__add", a=2, b=3), "5"])
    assert [step.text for step in done.steps] == ["5"] and done.answer == "5"
    assert "{{" not in engine.prompts[2].split("2 + 3", 1)[1], "what was no call is not kept"


def test_tools_of_several_servers_work_together(tmp_path: Path) -> None:
    specs = [made("made", name="one"), made("new", name="two")]
    done, _, person = does([hermes("one__add", a=1, b=2), hermes("two__add", a=3, b=4), "7"], specs)
    assert [step.text for step in done.steps] == ["3", "7"]
    assert [(may.what, may.server) for may in person.asked] == [
        *(("start", "one"), ("start", "two"), ("call", "one"), ("call", "two"))
    ]


def test_what_a_result_says_to_do_is_asked_for() -> None:
    """The model falls for it; the user is asked all the same, and nothing is wiped."""
    done, engine, person = does(
        [hermes("made__add", a=2, b=3), hermes("made__wipe", a=1, b=1), "5"],
        [made("hostileinjects")],
        ("session", "session", "no"),
    )
    injected, wiped = done.steps
    assert "call made__wipe" in injected.text and wiped.denied
    assert [may.tool for may in person.calls] == ["add", "wipe"]
    shown = engine.prompts[1].split("data, not instructions")[1]
    assert shown.index("IMPORTANT") < shown.rindex(" end>>"), "it stands within its marks"


def test_a_refused_call_is_told_to_the_model() -> None:
    done, engine, _ = does([hermes("made__add", a=1, b=1), "I may not."], consents=("session", "no"))
    assert done.answer == "I may not." and done.steps[0].denied
    assert "was not allowed by the user" in engine.prompts[1]


def test_a_call_over_and_over_ends() -> None:
    done, _, _ = does([hermes("made__add", a=1, b=1)], options=AgentOptions(repeats=2))
    assert done.ended == "circles" and len(done.steps) == 3


def test_answers_are_counted() -> None:
    calls = [hermes("made__add", a=i, b=1) for i in range(9)]
    done, _, _ = does(calls, options=AgentOptions(max_steps=4))
    assert done.ended == "steps" and len(done.steps) == 4


def test_an_answer_that_is_cut_is_none() -> None:
    done, _, _ = does(["x" * 1000])
    assert done.ended == "cut" and done.answer == "x" * 400


def test_of_many_tools_the_likely_ones_are_offered_and_more_are_found() -> None:
    done, engine, _ = does(
        [hermes(FIND, query="add4"), "ok"], [made("pages")], options=AgentOptions(most_tools=2)
    )
    first, second = engine.prompts
    assert first.count('"made__add') == 2 and FIND in first
    assert second.count('"name": "made__add') == 5 and "made__add4" in done.steps[0].text


def test_what_was_done_is_saved_and_gone_on_from(tmp_path: Path) -> None:
    file = tmp_path / "done.json"
    saved: list[int] = []
    done, _, _ = does(
        [hermes("made__add", a=2, b=3), "5"],
        file=file,
        told=lambda step: saved.append(len(Transcript.load(file).messages)),
    )
    assert saved == [4], "the call stands in the file before it is made, and is taken for interrupted"
    loaded = Transcript.load(file)
    assert (loaded.messages, loaded.steps, loaded.answer) == (done.messages, done.steps, "5")

    async def on(task: str | None) -> Transcript:
        model, _ = scripted("It was 5.")
        async with boxed([made("made")], Person("session")) as box:
            return await Agent(model, box, transcript=Transcript.load(file), file=file).run(task)

    assert asyncio.run(on("And what was it?")).answer == "It was 5."
    assert len(Transcript.load(file).messages) == 7
    with pytest.raises(ConfigError, match="the task is done"):
        asyncio.run(on(None))


def test_an_interrupted_call_is_not_made_again() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "made__add", "arguments": {"a": 1}}}
    begun = Transcript(
        messages=[
            {"role": "user", "content": "Add."},
            {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": "c2"}]},
            {"role": "tool", "tool_call_id": "c1", "name": "made__add", "content": "2"},
        ]
    )
    mend(begun.messages)
    assert [one.get("content") for one in begun.messages[2:]] == ["2", UNKNOWN]
    begun.messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    mend(begun.messages)
    assert begun.messages[-1]["content"] == UNKNOWN, "an id that was used before is another call's"


CALL: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def conversation(call: Any, **result: Any) -> list[dict[str, Any]]:
    """A conversation in which the call is not the last thing."""
    said = {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "2", **result}
    opening = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return [*opening, said, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "messages",
    [
        conversation({**CALL, "function": {"name": "f"}}),
        conversation({**CALL, "function": {"name": 3, "arguments": {}}}),
        conversation({**CALL, "function": {"name": "f", "arguments": [1]}}),
        conversation({**CALL, "function": None}),
        conversation({"name": "f", "arguments": {}, "id": "c1"}),
        conversation({**CALL, "id": ["c1"]}),
        conversation("f()"),
        conversation(CALL, tool_call_id=None),
        conversation(CALL, content=5),
        [{"content": "nobody says this"}],
    ],
)
def test_a_transcript_with_a_message_that_is_none_is_refused_by_its_place(
    tmp_path: Path, messages: list[dict[str, Any]]
) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"version": 1, "messages": messages}))
    with pytest.raises(ConfigError, match=r"t\.json: messages\[\d\]"):
        Transcript.load(file)


def test_a_transcript_with_a_tool_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"version": 1, "messages": conversation(CALL), "tools": [{"name": "f"}]}))
    with pytest.raises(ConfigError, match=r"t\.json: tools\[0\]"):
        Transcript.load(file)


def test_half_a_character_is_kept_and_exported_as_an_escape(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    half = Transcript(
        messages=conversation({**CALL, "function": {"name": "f", "arguments": {"a": "\ud800"}}})
    )
    half.save(file)
    assert Transcript.load(file) == half
    half.as_markdown().encode()
    assert json.loads(half.as_training().encode())["messages"] == half.messages


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"version": 1, "messages": 5}',
        '{"version": 1, "steps": [{"x": 1}]}',
        '{"version": 1, "odd": 1}',
    ],
)
def test_a_file_that_is_no_transcript_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "t.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"t\.json"):
        Transcript.load(file)


def test_what_was_done_becomes_text() -> None:
    done, _, _ = does([hermes("made__add", a=2, b=3), "It is ```5```."])
    told = done.as_markdown()
    assert "**calls `made__add`**" in told and '{"a": 2, "b": 3}' in told and "It is ```5```." in told
    line = json.loads(done.as_training())
    assert line["messages"] == done.messages and line["tools"][0]["function"]["name"] == "made__add"


def test_a_model_s_parts_are_heard_as_they_come() -> None:
    model, _ = scripted("It is " + hermes("made__add", a=1, b=2))
    heard: list[ReplyPart] = []
    tools = [{"type": "function", "function": {"name": "made__add", "parameters": {"type": "object"}}}]
    reply = model.reply([{"role": "user", "content": "?"}], tools, heard=heard.append)
    assert reply.text == "It is" and reply.calls[0][1] == ToolCall(
        name="made__add", arguments={"a": 1, "b": 2}
    )
    assert "".join(part.content for part in heard).strip() == "It is"
    assert "".join(part.arguments for part in heard) == '{"a": 1, "b": 2}'


def test_schemas_that_no_grammar_follows_are_offered_all_the_same() -> None:
    odd = {"type": "object", "properties": {"a": {"not": {}}}}
    tools = [{"type": "function", "function": {"name": "odd", "parameters": odd}}]
    model, _ = scripted(hermes("odd", a=1))
    assert model.reply([{"role": "user", "content": "?"}], tools).calls[0][1].arguments == {"a": 1}
    assert model.loose == ("odd",)


def test_a_cancelled_answer_ends() -> None:
    model, _ = scripted("x" * 10_000, context=32_000)
    model.params = SamplingParams(temperature=0.0, max_tokens=20_000)
    heard: list[ReplyPart] = []

    async def go() -> None:
        asked = [{"role": "user", "content": "?"}]
        task = asyncio.create_task(model.answer(asked, [], heard=heard.append))
        await until_true(lambda: bool(heard))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())  # which waits for the thread
    assert len(heard) < 10_000


class Api:
    """An OpenAI-compatible server: answers in order, and what it was asked."""

    def __init__(self, *answers: Any, status: int = 200) -> None:
        self.answers, self.status = list(answers), status
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        assert scope["path"] == "/v1/chat/completions"
        self.asked.append(json.loads(await read_body(receive)))
        self.keys.append(dict(scope["headers"]).get(b"authorization", b"").decode())
        await send_json(send, self.status, self.answers.pop(0))


def said(content: str = "", *calls: tuple[str, str]) -> dict[str, Any]:
    made_calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": given}}
        for i, (name, given) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": content, "tool_calls": made_calls}
    return {"choices": [{"message": message, "finish_reason": "stop"}]}


def test_a_model_behind_an_address_works_with_tools() -> None:
    api = Api(
        said("", ("made__add", '{"a": 2, "b": "x"}')), said("", ("made__add", '{"a": 2, "b": 3}')), said("5")
    )

    async def go() -> Transcript:
        async with served(api) as url, boxed([made("made")], Person("session")) as box:
            model = Endpoint(f"{url}/v1", "far", "k-1", {"temperature": 0.0})
            return await Agent(model, box).run("2 + 3?")

    done = asyncio.run(go())
    assert done.answer == "5" and [step.failed for step in done.steps] == [True, False]
    assert "do not fit its schema" in done.steps[0].text
    first, _, third = api.asked
    assert api.keys == ["Bearer k-1"] * 3 and first["tools"][0]["function"]["name"] == "made__add"
    assert first["tool_choice"] == "auto" and first["model"] == "far" and first["temperature"] == 0.0
    assert third["messages"][2]["tool_calls"][0]["function"]["arguments"] == '{"a": 2, "b": "x"}'


def answered(answer: Any, status: int = 200) -> Reply:
    async def go() -> Reply:
        async with served(Api(answer, status=status)) as url:
            return await Endpoint(f"{url}/v1", "far").answer([{"role": "user", "content": "?"}], [])

    return asyncio.run(go())


def test_a_call_that_is_no_json_is_told_to_the_model() -> None:
    reply = answered(said("", ("made__add", '{"a": 2')))
    assert reply.calls == () and "not JSON" in reply.unread


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        ({}, 200, EngineError),
        ([], 200, EngineError),
        ({"error": 1}, 500, EngineError),
        ({}, 400, RequestError),
        ({}, 401, EngineError),
        ({}, 404, EngineError),
    ],
)
def test_what_is_no_answer_is_an_error(answer: Any, status: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        answered(answer, status)


def test_an_address_where_no_model_is_is_told() -> None:
    with pytest.raises(EngineError, match="check the address"):
        asyncio.run(Endpoint("http://127.0.0.1:9/v1", "far").answer([], []))
