"""What the chat page asks of servers of tools: nothing runs unasked, and nobody asks without the token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from minicpm4 import AsyncLLM
from minicpm4.agents.mcp import page
from minicpm4.agents.mcp.approvals import Approvals
from minicpm4.agents.mcp.asking import Field, Form
from minicpm4.agents.mcp.config import ServerConfig
from minicpm4.agents.mcp.hidden import escaped
from minicpm4.agents.mcp.page import PageTools
from minicpm4.serve.app import APIS, create_app
from minicpm4.testing import ScriptedEngine
from tests.agents.servers import made
from tests.asgi import client_of

NOTED = "call add"


class Asked:
    """A page's side of it: ``answers`` are given to questions in order, the last for ever."""

    def __init__(self, client: httpx.AsyncClient, token: str, *answers: dict[str, Any]) -> None:
        self.client, self.token, self.answers = client, token, list(answers)
        self.questions: list[dict[str, Any]] = []

    async def post(self, what: str, /, **body: Any) -> httpx.Response:
        return await self.client.post(f"/mcp/{what}", json={"token": self.token, **body})

    async def begin(self, **body: Any) -> str:
        return str((await self.post("begin", **body)).json()["job"])

    async def ended(self, job: str) -> dict[str, Any]:
        while True:
            news = (await self.post("wait", job=job)).json()
            if news["state"] == "done":
                return dict(news["result"])
            if news["state"] == "asks":
                question = news["question"]
                self.questions.append(question)
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                await self.post("answer", job=job, question=question["id"], **answer)

    async def work(self, **body: Any) -> dict[str, Any]:
        return await self.ended(await self.begin(**body))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def go(log: Path) -> Iterator[Callable[..., Any]]:
    """``go(story, *consents, manner=…)`` has a story told with a page before servers of tools."""
    engine = ScriptedEngine(["ok"])
    llm = AsyncLLM.over(engine, engine.text, name="scripted")

    def run(
        story: Callable[[Asked, PageTools], Awaitable[None]], *consents: Any, manner: str = "made"
    ) -> Asked:
        async def told() -> Asked:
            tools = PageTools(ServerConfig({"made": made(manner, log)}), Approvals(None))
            app = create_app(llm, apis=(*APIS, tools.api))
            answers = [{"consent": one} if isinstance(one, str) else {"values": one} for one in consents]
            async with client_of(app) as client:
                asked = Asked(client, tools.token, *answers)
                try:
                    await story(asked, tools)
                finally:
                    await tools.close()
            return asked

        return asyncio.run(told())

    yield run
    llm.llm.close()


ADD = {"what": "call", "name": "made__add", "arguments": '{"a": 2, "b": 3}'}


def noted(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def test_without_the_token_nothing_is_told(go: Any, log: Path) -> None:
    async def story(asked: Asked, tools: PageTools) -> None:
        asked.token = tools.token[:-1]
        bodies = {"begin": {"what": "start"}, "wait": {"job": "x"}, "answer": {"job": "x", "question": "y"}}
        bodies |= {"drop": {"job": "x"}, "meant": {"text": "x"}}
        for what in ("tools", "begin", "wait", "answer", "drop", "meant"):
            answer = await asked.post(what, **bodies.get(what, {}))
            assert answer.status_code == 403 and answer.json()["error"]["code"] == "wrong_token"
            bare = await asked.client.post(f"/mcp/{what}", json=bodies.get(what, {"job": "x"}))
            assert bare.status_code == 400, "the token is a field of every body"
        told = await asked.client.get("/mcp/tools")
        assert told.status_code == 405

    go(story, "once")
    assert noted(log) == []


def test_looking_starts_nothing_and_starting_asks(go: Any, log: Path) -> None:
    async def story(asked: Asked, tools: PageTools) -> None:
        seen = (await asked.post("tools")).json()
        assert not seen["begun"] and seen["tools"] == [] and noted(log) == []
        assert not (await asked.work(what="start"))["failed"]
        seen = (await asked.post("tools")).json()
        assert seen["begun"] and [one["name"] for one in seen["tools"]] == ["made.add"]
        assert seen["offered"][0]["function"]["name"] == "made__add" and not seen["tools"][0]["allowed"]

    asked = go(story, "session")
    (question,) = asked.questions
    assert (question["kind"], question["server"]) == ("start", "made")
    assert any("made_server.py" in told for _, told in question["details"])


def test_an_answer_that_names_a_tool_as_a_call_would_was_meant_for_one(go: Any) -> None:
    async def story(asked: Asked, tools: PageTools) -> None:
        call = '{"name": "made__add", "arguments": {"a": 2}}'
        assert (await asked.post("meant", text=call)).json() == {"meant": False}, "no server has begun"
        await asked.work(what="start")
        for text, meant in ((call, True), ("I can add by made__add.", False), ('{"name": "add"}', False)):
            assert (await asked.post("meant", text=text)).json() == {"meant": meant}
        assert (await asked.post("meant", text="a" * ((1 << 20) + 1))).status_code == 400

    go(story, "session")


@pytest.mark.parametrize(
    ("consents", "texts", "questions"),
    [
        (("session", "once"), ["5", "5"], 3),
        (("session", "session"), ["5", "5"], 2),
        (("session", "no"), ["not called", "not called"], 3),
    ],
)
def test_a_call_is_asked_for_once_for_a_session_or_not_made(
    go: Any, log: Path, consents: tuple[str, ...], texts: list[str], questions: int
) -> None:
    async def story(asked: Asked, tools: PageTools) -> None:
        await asked.work(what="start")
        for text in texts:
            result = await asked.work(**ADD)
            assert text in result["text"] and result["denied"] == (text != "5")
            assert "data, not instructions" in result["content"]

    asked = go(story, *consents)
    assert len(asked.questions) == questions
    assert len([line for line in noted(log) if line.startswith(NOTED)]) == texts.count("5")


def test_a_question_shows_what_nobody_sees(go: Any) -> None:
    hidden = {"a": 2, "b": 3, "note\u200b": "x\u202ey\x07"}

    async def story(asked: Asked, tools: PageTools) -> None:
        await asked.work(what="start")
        await asked.work(what="call", name="made__add", arguments=json.dumps(hidden))

    (_, question) = go(story, "session", "once").questions
    assert (question["tool"], question["kind"]) == ("add", "call")
    assert "note\\u{200b}" in question["arguments"] and "x\\u{202e}y\\u0007" in question["arguments"]


def test_a_plan_calls_nothing(go: Any, log: Path) -> None:
    async def story(asked: Asked, tools: PageTools) -> None:
        await asked.work(what="start")
        plan = (await asked.post("begin", **{**ADD, "what": "plan"})).json()
        assert plan["asks"] and "you would be asked first" in plan["told"]
        unfit = (await asked.post("begin", what="plan", name="made__add", arguments="{}")).json()
        assert "do not fit" in unfit["told"]
        gone = (await asked.post("begin", what="plan", name="made__gone", arguments="{}")).json()
        assert "there is no tool" in gone["told"]

    assert len(go(story, "session").questions) == 1
    assert not any(line.startswith(NOTED) for line in noted(log))


def test_an_old_answer_counts_for_no_other_question(go: Any, log: Path) -> None:
    async def story(asked: Asked, tools: PageTools) -> None:
        await asked.work(what="start")
        job = await asked.begin(**ADD)
        question = (await asked.post("wait", job=job)).json()["question"]
        old = asked.questions[0]["id"]
        answer = {"job": job, "consent": "always"}
        assert (await asked.post("answer", question=old, **answer)).status_code == 409
        assert (await asked.post("answer", question=question["id"], job="other")).status_code == 404
        assert (await asked.ended(job))["denied"]

    go(story, "session", "no")
    assert not any(line.startswith(NOTED) for line in noted(log))


def test_a_dropped_call_is_not_made_and_the_next_one_is(go: Any, log: Path) -> None:
    async def story(asked: Asked, tools: PageTools) -> None:
        await asked.work(what="start")
        job = await asked.begin(**ADD)
        assert (await asked.post("wait", job=job)).json()["state"] == "asks"
        assert (await asked.post("drop", job=job)).json() == {"dropped": True}
        assert (await asked.post("wait", job=job)).status_code == 404
        assert (await asked.work(**ADD))["text"] == "5"

    go(story, "session", "once")
    assert len([line for line in noted(log) if line.startswith(NOTED)]) == 1


def test_a_page_that_has_gone_is_a_no(go: Any, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(asked: Asked, tools: PageTools) -> None:
        await asked.work(what="start")
        monkeypatch.setattr(page, "GONE", 0.0)
        assert (await asked.ended(await asked.begin(**ADD)))["denied"]

    go(story, "session", "once")
    assert not any(line.startswith(NOTED) for line in noted(log))


def test_what_a_server_asks_is_a_form(go: Any) -> None:
    async def story(asked: Asked, tools: PageTools) -> None:
        await asked.work(what="start")
        asked.result = await asked.work(**ADD)  # type: ignore[attr-defined]

    asked = go(story, "session", "once", {"n": 4, "unknown": 1}, manner="asks")
    form = asked.questions[-1]
    assert form["kind"] == "form" and [one["kind"] for one in form["fields"]] == ["integer", "string"]
    assert "4" in asked.result["text"], asked.result


def test_an_answer_goes_to_the_form_that_was_shown_alone(go: Any) -> None:
    told: dict[str, Any] = {}

    async def story(asked: Asked, tools: PageTools) -> None:
        await asked.work(what="start")
        job = await asked.begin(**ADD)
        consent = (await asked.post("wait", job=job)).json()["question"]
        await asked.post("answer", job=job, question=consent["id"], consent="once")
        first = (await asked.post("wait", job=job)).json()["question"]
        await asyncio.sleep(0.3)  # time for the other question to push this one aside
        assert (await asked.post("wait", job=job)).json()["question"] == first
        await asked.post("answer", job=job, question=first["id"], values={"n": 7})
        told.update(json.loads((await asked.ended(job))["text"]))
        told["shown"] = first["message"]

    go(story, "session", None, manner="hostileasksatonce")
    assert told.pop(told.pop("shown"))["content"] == {"n": 7}
    assert [one["action"] for one in told.values()] == ["decline"]


FORM = Form(
    server="made",
    tool="add",
    message="Which?",
    fields=(
        Field(name="bare", kind="string"),
        Field(name="told", kind="string", told="yes\u202eno", choices=("a\u200bb",)),
    ),
)


def test_fields_have_a_description_or_their_name_and_no_hidden_letters(go: Any) -> None:
    shown: dict[str, Any] = {}

    async def story(asked: Asked, tools: PageTools) -> None:
        job = page._Job("1")
        tools._jobs["1"] = tools._current = job
        waiting = asyncio.create_task(tools._tell(FORM))
        shown.update((await asked.post("wait", job="1")).json()["question"])
        await asked.post(
            "answer", job="1", question=shown["id"], values={"bare": "x", "told": "c", "more": 1}
        )
        assert await waiting == {"bare": "x"}

    go(story, "no")
    bare, told = shown["fields"]
    assert bare["told"] == "bare"
    assert told["told"] == escaped("yes\u202eno") != "yes\u202eno"
    assert told["choices"] == [["a\u200bb", escaped("a\u200bb")]] and told["choices"][0][1] != "a\u200bb"


def test_as_many_calls_wait_as_may_and_no_more(go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_JOBS", 2)

    async def story(asked: Asked, tools: PageTools) -> None:
        # The arguments of a start are nobody's: it has none.
        assert (await asked.post("begin", what="start", arguments="{")).status_code == 200
        assert (await asked.post("begin", what="start")).status_code == 200
        more = await asked.post("begin", what="start")
        assert more.status_code == 429 and "2 calls wait already" in more.json()["error"]["message"]

    go(story, "no")


def test_wrong_bodies_and_names_are_told(go: Any) -> None:
    async def story(asked: Asked, tools: PageTools) -> None:
        await asked.work(what="start")
        assert (await asked.post("begin", what="call", arguments="[1]")).status_code == 400
        assert (await asked.post("begin", what="call", arguments="{")).status_code == 400
        gone = await asked.work(what="call", name="made__gone")
        assert gone["failed"] and "there is no tool" in gone["text"]

    go(story, "session")


def test_a_page_that_asks_twice_is_told_the_same(go: Any) -> None:
    """It says that it is still there by asking, while it waits for the end as well."""

    async def story(asked: Asked, tools: PageTools) -> None:
        await asked.work(what="start")
        job = await asked.begin(**ADD)
        question = (await asked.post("wait", job=job)).json()["question"]
        await asked.post("answer", job=job, question=question["id"], consent="once")
        both = await asyncio.gather(*(asked.post("wait", job=job) for _ in range(2)))
        both.append(await asked.post("wait", job=job))
        assert [one.status_code for one in both] == [200] * 3
        assert [one.json()["result"]["text"] for one in both] == ["5"] * 3

    go(story, "session")


def test_ends_that_were_told_stand_in_nobodys_way(go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_JOBS", 2)

    async def story(asked: Asked, tools: PageTools) -> None:
        for _ in range(6):
            assert not (await asked.work(what="start"))["failed"]
        assert len(tools._jobs) <= 3

    go(story, "session")


@pytest.mark.parametrize("arguments", ["[" * 100_000, "{", "[]", '{"a": NaN}'])
def test_arguments_that_are_no_json_object_are_refused(go: Any, arguments: str) -> None:
    async def story(asked: Asked, tools: PageTools) -> None:
        answer = await asked.post("begin", what="call", name="made__add", arguments=arguments)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "arguments"

    go(story, "no")
