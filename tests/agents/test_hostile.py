"""Servers that mean harm are contained: bounded, asked for again, escaped, ended."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from minicpm4.agents.mcp.approvals import Approvals
from minicpm4.agents.mcp.asking import Ask, Form
from minicpm4.agents.mcp.checks import misfit
from minicpm4.agents.mcp.config import ServerConfig, ServerSpec
from minicpm4.agents.mcp.hidden import has_hidden
from minicpm4.agents.mcp.limits import Limits
from minicpm4.agents.mcp.results import ToolResult, fenced
from minicpm4.agents.mcp.toolbox import Toolbox
from minicpm4.agents.mcp.wire import Wire, _Bounded
from minicpm4.errors import ToolServerError
from tests.agents.servers import SOON, Person, boxed, made, running
from tests.waiting import until_true

TIGHT = Limits(request_bytes=4 << 20, message_bytes=1 << 20, noise_bytes=200_000)
GIVEN = {"a": 2, "b": 3}


def called(spec: ServerSpec, limits: Limits = TIGHT, person: Person | None = None) -> ToolResult:
    """What a call of ``add`` gives where everything is allowed."""

    async def go() -> ToolResult:
        async with boxed([spec], person or Person("session"), limits) as box:
            return await box.call(f"{spec.name}.add", GIVEN)

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("manner", "told"),
    [
        ("hostileflood", "a message of over 1,048,576 bytes"),
        ("hostilenews", "over 4,194,304 bytes without being asked"),
        ("hostilepings", "over 4,194,304 bytes without being asked"),
        ("hostilenoise", "no JSON-RPC"),
        ("hostilelines", "no JSON-RPC"),
    ],
)
def test_a_server_that_says_too_much_is_ended(manner: str, told: str) -> None:
    result = called(made(manner))
    assert result.failed and told in result.text and len(result.text) < 3000


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n", b"\n\r"])
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_small_messages_of_a_stream_are_counted(end: bytes, size: int) -> None:
    limits = Limits(request_bytes=1 << 20)
    whole = (b'data: {"jsonrpc":"2.0","id":1,"method":"ping"}' + end) * 300

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(whole), size):
            yield whole[at : at + size]

    async def go() -> int:
        read, body = b"", _Bounded(pieces(), Wire(limits), stream=True, aside=False)
        try:
            async for chunk in body:
                read += chunk
        except httpx2.StreamError:
            return read.count(b"data")
        return 0

    assert 150 < asyncio.run(go()) < 260


@pytest.mark.parametrize("manner", ["hostiledrip", "hangs"])
def test_a_server_that_takes_too_long_is_ended(manner: str) -> None:
    result = called(made(manner, timeout=0.5))
    assert result.failed and "did not answer add in 0.5 s" in result.text


def test_a_server_whose_child_holds_its_pipes_has_ended_all_the_same() -> None:
    assert "ended with code 3" in called(made("hostileorphans")).text


def test_a_server_that_reads_no_more_is_told() -> None:
    async def go() -> tuple[ToolResult, ToolResult]:
        async with boxed([made("hostiledeaf")], Person("session"), SOON) as box:
            return await box.call("made.add", GIVEN), await box.call("made.add", GIVEN)

    first, second = asyncio.run(go())
    assert first.text == "5" and "it reads no more" in second.text


def test_an_error_of_a_server_ends_no_connection() -> None:
    async def go() -> tuple[ToolResult, str, int]:
        async with boxed([made("hostileerrors")], Person("session"), SOON) as box:
            result = await box.call("made.add", GIVEN)
            await box.refresh()
            return result, box.health[0].state, box.health[0].restarts

    result, *state = asyncio.run(go())
    assert result.text == "made answered with error -32000: the database is locked"
    assert state == ["ready", 0]


def test_processes_of_ended_servers_are_gone(tmp_path: Path) -> None:
    async def go() -> int:
        async with running(made("hangs", tmp_path / "log", timeout=0.2)) as server:
            await server.tools()
            with pytest.raises(ToolServerError):
                await server.call("add", GIVEN)
        return int((tmp_path / "log").read_text().split()[-1])

    process = asyncio.run(go())
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_few_lines_that_are_no_messages_are_passed_over() -> None:
    assert called(made("hostilegarbage")).text == "5"


def test_a_schema_of_100_mb_is_not_read() -> None:
    async def go() -> dict[str, str]:
        async with boxed([made("hostileschema")], Person("session"), SOON) as box:
            assert box.tools == {}
            return box.troubles

    assert "a message of over 8,388,608 bytes" in asyncio.run(go())["made"]


def test_a_message_that_is_nested_too_deep_is_no_message() -> None:
    async def go() -> dict[str, str]:
        async with boxed([made("hostiledeep")], Person("session"), SOON) as box:
            return box.troubles

    assert "a message that cannot be read" in asyncio.run(go())["made"]


def test_tools_that_are_too_large_are_left_out_and_told() -> None:
    async def go() -> tuple[list[str], tuple[str, ...]]:
        async with boxed([made("hostilelarge")], Person("session"), SOON) as box:
            return [tool.name for tool in box.tools.values()], box.notes

    names, notes = asyncio.run(go())
    assert names == ["add"]
    told = "\n".join(notes)
    assert all(word in told for word in ("deep", "wide", "wordy", "300 characters", "two tools 'add'"))


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("description", "description"),
        ("inputSchema", "schema"),
        ("annotations", "hints"),
    ],
)
def test_a_tool_that_changed_is_asked_for_again(tmp_path: Path, field: str, changed: str) -> None:
    person = Person("always")
    spec = made("hostilechanges", tmp_path / "log", env={"FIELD": field})

    async def go() -> None:
        async with boxed([spec], person, SOON) as box:
            for _ in range(2):
                await box.call("made.add", {"a": 2, "b": 3, "secrets": "x"})

    asyncio.run(go())
    first, second = person.calls
    assert first.changed == () and second.changed == (changed,)


def test_a_change_between_consent_and_call_calls_nothing_unasked(tmp_path: Path) -> None:
    person, log = Person("always", "always", "no"), tmp_path / "log"

    async def go() -> ToolResult:
        async with boxed([made("hostilechanges", log, env={"FIELD": "description"})], person, SOON) as box:
            await box.call("made.add", GIVEN)
            return await box.call("made.add", GIVEN)

    result = asyncio.run(go())
    assert result.denied and log.read_text().count("call") == 1


@pytest.mark.parametrize("field", ["name", "gone"])
def test_a_tool_of_another_name_is_another_tool(tmp_path: Path, field: str) -> None:
    person, log = Person("always", "always", "no"), tmp_path / "log"

    async def go() -> tuple[ToolResult, list[ToolResult]]:
        async with boxed([made("hostilechanges", log, env={"FIELD": field})], person, SOON) as box:
            await box.call("made.add", GIVEN)
            gone = await box.call("made.add", GIVEN)
            await box.refresh()
            return gone, [await box.call(name, GIVEN) for name in box.tools]

    gone, renamed = asyncio.run(go())
    assert gone.failed and "no longer has this tool" in gone.text
    if field == "name":
        assert renamed[0].denied and person.calls[-1].changed == ("its name: it was 'add'",)
    assert log.read_text().count("call") == 1


def test_what_nobody_sees_reaches_no_model() -> None:
    person = Person("session")

    async def go() -> tuple[Any, ToolResult, tuple[str, ...]]:
        async with boxed([made("hostilehidden")], person, SOON) as box:
            (tool,) = box.tools.values()
            return tool.function, await box.call("made.add", {}), box.notes

    function, result, notes = asyncio.run(go())
    assert function["function"]["description"] == "Add."
    assert function["function"]["parameters"]["properties"]["a"]["description"] == "anumber"
    assert result.text == "5[31m" and not has_hidden(fenced(result, "add"))
    assert "not seen" in notes[0] and "not seen" in person.calls[0].warnings[0]
    assert person.calls[0].warnings[1] == "its server says that it may destroy something", "whatever else"
    assert has_hidden(dict(person.calls[0].details)["says"]), "a person is shown them, escaped"


def test_look_alikes_on_other_servers_are_told() -> None:
    person = Person("session")
    specs = [made("made", name="one"), made("hostileinjects", name="two")]

    async def go() -> tuple[list[str], tuple[str, ...]]:
        async with boxed(specs, person, SOON) as box:
            await box.call("two.add", GIVEN)
            return list(box.tools), box.notes

    names, notes = asyncio.run(go())
    assert names == ["one__add", "two__add", "two__wipe"]
    assert "two.add: its name looks like one.add" in notes
    assert person.calls[0].warnings == ("its name looks like one.add",)


def test_one_consent_is_for_one_tool_of_one_server() -> None:
    person = Person("session", "session", "session", "no")
    specs = [made("made", name="one"), made("hostileinjects", name="two")]

    async def go() -> tuple[ToolResult, ...]:
        async with boxed(specs, person, SOON) as box:
            return tuple([await box.call(name, GIVEN) for name in ("one.add", "two.add", "two.wipe")])

    first, second, third = asyncio.run(go())
    assert first.text == "5" and second.denied and third.denied


def test_secrets_are_hidden_in_results_and_errors() -> None:
    spec = made("hostilesecrets", env={"API_TOKEN": "tok-12345-abcdef", "MODE": "true"})

    person, functions = Person("session"), []

    async def go(given: dict[str, int]) -> ToolResult:
        async with boxed([spec], person, SOON) as box:
            functions.extend(tool.function for tool in box.tools.values())
            return await box.call("made.add", given)

    told = asyncio.run(go(GIVEN)).text
    assert told.startswith("[secret] [secret] {") and "12345" not in told and '"MODE": "true"' in told
    assert "12345" not in asyncio.run(go({"a": 1, "b": 1})).text
    assert "12345" not in f"{functions} {person.asked}"
    assert functions[0]["function"]["description"] == "Add, by [secret]."


@pytest.mark.parametrize("manner", ["hostileasks", "hostilenewasks"])
def test_questions_without_end_end(manner: str) -> None:
    person = Person("session", values={"n": 1})
    result = called(made(manner), SOON, person)
    assert result.failed and ("more than 4 times" in result.text or "was given up" in result.text)
    assert 0 < len(person.forms) <= SOON.rounds + 1


def test_an_answer_is_that_of_the_question_that_was_shown() -> None:
    person, open_ones = Person("session"), 0

    async def tell(form: Form) -> dict[str, int]:
        nonlocal open_ones
        open_ones += 1
        assert open_ones == 1, "a person answers one question at a time"
        person.forms.append(form)
        await asyncio.sleep(0.1)
        open_ones -= 1
        return {"n": len(form.message)}

    async def go() -> ToolResult:
        spec = made("hostileasksatonce")
        ask = Ask(person.ask.may, tell)
        async with Toolbox(ServerConfig({"made": spec}), Approvals(None), ask, SOON) as box:
            await box.refresh()
            return await box.call("made.add", GIVEN)

    told = json.loads(asyncio.run(go()).text)
    assert {key: one["content"]["n"] for key, one in told.items()} == {key: len(key) for key in told}
    assert sorted(form.message for form in person.forms) == sorted(told) and len(told) == 2


def test_time_goes_on_when_several_questions_are_answered() -> None:
    person = Person("session", values={"n": 1})
    result = called(made("hostileasksandhangs", timeout=1.0), SOON, person)
    assert "did not answer add in 1 s" in result.text and len(person.forms) == 2


def test_a_question_is_taken_back_when_its_call_ends() -> None:
    shown: list[str] = []

    async def tell(form: Form) -> None:
        shown.append(form.message)
        try:
            await asyncio.sleep(3600)
        finally:
            shown.remove(form.message)

    async def go() -> str:
        ask = Ask(Person("session").ask.may, tell)
        config = ServerConfig({"made": made("hostileasksandanswers")})
        async with Toolbox(config, Approvals(None), ask, SOON) as box:
            await box.refresh()
            text = (await box.call("made.add", GIVEN)).text
            await until_true(lambda: not shown)
            return text

    assert asyncio.run(go()) == "done"


def test_a_question_that_no_call_caused_is_declined(tmp_path: Path) -> None:
    person, log = Person("session", values={}), tmp_path / "log"

    async def go() -> None:
        async with boxed([made("hostileunasked", log)], person, SOON):
            pass

    asyncio.run(go())
    assert person.forms == [] and '"action":"decline"' in log.read_text().replace(" ", "")


@pytest.mark.parametrize("kind", ["date", [None], [{}], "", ["string", "x"]])
def test_a_type_that_nobody_knows_is_left_to_the_server(kind: Any) -> None:
    assert misfit({"properties": {"x": {"type": kind}}}, {"x": 1}) == ""


def test_unlike_items_are_told_in_linear_time() -> None:
    schema = {"properties": {"x": {"uniqueItems": True}}}
    many: list[Any] = [{"a": i} for i in range(50_000)]
    assert misfit(schema, {"x": many}) == ""  # each with each would take hours
    assert "non-unique" in misfit(schema, {"x": [*many, {"a": 7.0}]})
    assert misfit(schema, {"x": [1, True, "1", [1], [True], {"a": 1}, {"a": True}, None, 0, False]}) == ""


BOMB = {"$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 9} for i in range(30)} | {"d30": {}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/d0", **BOMB},
        {"$ref": "#"},
        {"properties": {"a": {"pattern": "^(a+)+$"}}},
        {"$ref": "https://elsewhere.example/schema"},
        {"properties": 7},
        {"type": 7},
        {"properties": {"b": {"multipleOf": 0}}},
        {"properties": {"b": {"items": {"enum": list(range(10_000))}}}},
        {"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False},
        {"patternProperties": {"^(a+)+$": {}}, "unevaluatedProperties": False},
    ],
)
def test_schemas_that_would_keep_us_busy_do_not(schema: dict[str, Any]) -> None:
    long = "a" * 40 + "!"
    for b in (4, [9_999] * 10_000):
        assert misfit(schema, {"a": long, "b": b, long: 1}) == ""  # else it would take years


def test_a_config_alone_starts_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def go() -> None:
        config = ServerConfig({"made": made("made", log)})
        async with Toolbox(config, Approvals(None), Person("no").ask) as box:
            await box.refresh()
            assert "not allowed" in box.troubles["made"]

    asyncio.run(go())
    assert not log.exists()
