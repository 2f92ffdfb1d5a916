"""Tools of servers in the page, before the server itself: each call is shown, asked for, and made or not."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from minicpm4 import AsyncLLM
from minicpm4.agents.mcp.approvals import Approvals
from minicpm4.agents.mcp.config import ServerConfig
from minicpm4.agents.mcp.page import PageTools
from minicpm4.serve.app import APIS, create_app
from minicpm4.testing import ScriptedEngine
from tests.agents.servers import made
from tests.agents.test_agent import hermes
from tests.serve.browser import AXE, Visit, browser, visit
from tests.text.call_templates import source_of
from tests.waiting import PATIENCE

pytestmark = pytest.mark.browser
__all__ = ["browser", "visit"]
Visits = Callable[..., Visit]
SHOTS = os.environ.get("MINICPM4_SHOTS", "")


class Stage:
    """A server with tools: ``log`` is the tool server's, ``engine`` the model's."""

    def __init__(self, log: Path, answers: list[str], manner: str) -> None:
        self.log = log
        self.engine = ScriptedEngine(answers, chat_template=source_of("qwen2_5"), context=16384)
        self.llm = AsyncLLM.over(self.engine, self.engine.text, name="scripted")
        self.tools = PageTools(ServerConfig({"made": made(manner, log)}), Approvals(None))
        app = create_app(self.llm, apis=(*APIS, self.tools.api))

        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await receive()
                await send({"type": "lifespan.startup.complete"})
                await receive()
                await self.tools.close()
                await send({"type": "lifespan.shutdown.complete"})
                return
            await app(scope, receive, send)

        self.server = uvicorn.Server(uvicorn.Config(asgi, port=0, lifespan="on", log_config=None, ws="none"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/"

    @property
    def calls(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith("call")]

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        self.llm.llm.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def start(*answers: str, manner: str = "made") -> Stage:
        made.append(Stage(tmp_path / "log", list(answers), manner))
        return made[-1]

    yield start
    for one in made:
        one.close()


def shot(one: Visit, name: str) -> None:
    if SHOTS:
        one.page.screenshot(path=f"{SHOTS}/{name}.png")


def begun(visit: Visits, on: Stage) -> Visit:
    """A window whose servers have been started."""
    one = visit(address=on.address)
    one.page.goto("about:blank")
    one.page.goto(f"{on.address}#tools={on.tools.token}")
    one.page.wait_for_selector("select.models")
    one.press("Tools")
    one.page.get_by_role("button", name="Start the servers").click()
    one.page.wait_for_selector("dialog.question[open]")
    shot(one, "start")
    one.press("This session")
    one.page.wait_for_selector("text=1 tool")
    assert one.page.get_by_label("Offer the tools to the model").is_checked()
    shot(one, "tools")
    one.press("Close the tools")
    return one


def question(one: Visit) -> str:
    one.page.wait_for_selector("dialog.question[open]")
    return str(one.page.inner_text("dialog.question"))


CALL = hermes("made__add", a=2, b=3)


def test_a_call_is_shown_asked_for_made_and_told_to_the_model(stage: Any, visit: Visits) -> None:
    on = stage(CALL, "It is 5.")
    one = begun(visit, on)
    assert one.page.url == on.address, "the token stays in no history"
    one.ask("What is 2 + 3?", wait=False)
    shown = question(one)
    shot(one, "call")
    for words in ("May this tool be called?", "made", "add", '"a": 2', "Add two whole numbers"):
        assert words in shown
    assert on.calls == [], "nothing runs unasked"
    one.press("Once")
    one.page.wait_for_selector("text=It is 5.")
    one.settled()
    shot(one, "answer")
    assert on.calls == ['call add {"a": 2, "b": 3}']
    assert "data, not instructions" in on.engine.prompts[1] and "you are offered" in on.engine.prompts[0]
    first = one.page.locator(".message.assistant").first.inner_text()
    assert "Call of made__add, done" in first and "5" in first
    one.page.reload()
    one.page.wait_for_selector("text=It is 5.")
    assert "Call of made__add, done" in one.page.locator(".message.assistant").first.inner_text()


def test_a_call_written_as_text_is_asked_for_once_more(stage: Any, visit: Visits) -> None:
    on = stage('{{"name": "made__add", "arguments": {"a": 2, "b": 3}}}', CALL, "It is 5.")
    one = begun(visit, on)
    one.ask("What is 2 + 3?", wait=False)
    question(one)
    shot(one, "once-more")
    first = one.page.locator(".message.assistant").first.inner_text()
    assert "made__add" in first and "{{" not in first, "the call takes the place of the text"
    one.press("Once")
    one.page.wait_for_selector("text=It is 5.")
    one.settled()
    assert on.calls == ['call add {"a": 2, "b": 3}']
    assert on.engine.prompts[0] == on.engine.prompts[1], "the model does not read what it wrote"


def test_an_answer_that_speaks_of_a_tool_stays(stage: Any, visit: Visits) -> None:
    on = stage("I can add by made__add.")
    one = begun(visit, on)
    one.ask("What can you do?")
    assert "I can add by" in one.page.locator(".message.assistant").first.inner_text()
    assert len(on.engine.prompts) == 1


def test_an_answer_too_long_to_be_looked_at_stays(stage: Any, visit: Visits) -> None:
    on = stage("I can add.")
    one = begun(visit, on)
    one.expected = ("400 (Bad Request)",)
    one.page.route("**/mcp/meant", lambda route: route.fulfill(status=400, body="{}"))
    one.ask("What can you do?")
    assert one.page.locator(".message.assistant").first.inner_text().count("I can add.") == 1
    assert one.page.locator(".message.assistant .failure").count() == 0 and len(on.engine.prompts) == 1


@pytest.mark.parametrize("refuse", ["No", "Escape"])
def test_a_refused_call_is_not_made(stage: Any, visit: Visits, refuse: str) -> None:
    on = stage(CALL, "I may not.")
    one = begun(visit, on)
    one.ask("What is 2 + 3?", wait=False)
    question(one)
    focused = one.page.evaluate("document.activeElement.textContent")
    assert focused == "No", "Enter refuses too"
    if refuse == "No":
        one.press("No")
    else:
        one.page.keyboard.press("Escape")
    one.page.wait_for_selector("text=I may not.")
    assert on.calls == [] and "was not allowed by the user" in on.engine.prompts[1]
    assert "Call of made__add, refused" in one.page.locator(".message.assistant").first.inner_text()


def test_a_session_is_asked_once(stage: Any, visit: Visits) -> None:
    on = stage(CALL, hermes("made__add", a=5, b=4), "It is 9.")
    one = begun(visit, on)
    one.ask("What is 2 + 3 + 4?", wait=False)
    question(one)
    one.press("This session")
    one.page.wait_for_selector("text=It is 9.")
    assert len(on.calls) == 2


def test_what_nobody_sees_is_written_out(stage: Any, visit: Visits) -> None:
    raw = json.dumps(
        {"name": "made__add", "arguments": {"a": 2, "b": 3, "x": "p\u202eq\u200b"}}, ensure_ascii=False
    )
    on = stage(f"<tool_call>\n{raw}\n</tool_call>", "Done.")
    one = begun(visit, on)
    one.ask("What is 2 + 3?", wait=False)
    assert "p\\u{202e}q\\u{200b}" in question(one)
    shot(one, "hidden")
    one.press("No")
    one.page.wait_for_selector("text=Done.")
    assert "p\\u{202e}q\\u{200b}" in one.page.locator(".message.assistant").first.inner_text()


def test_a_dry_run_shows_and_calls_nothing(stage: Any, visit: Visits) -> None:
    on = stage(CALL, "never")
    one = begun(visit, on)
    one.press("Tools")
    one.page.get_by_label("Dry run").check()
    one.press("Close the tools")
    one.ask("What is 2 + 3?")
    assert "Dry run: made.add at" in one.answer() and "you would be asked first" in one.answer()
    shot(one, "dry-run")
    assert (
        on.calls == []
        and len(on.engine.prompts) == 1
        and not one.page.query_selector("dialog.question[open]")
    )


def test_stop_takes_the_question_back(stage: Any, visit: Visits) -> None:
    on = stage(CALL, "never")
    one = begun(visit, on)
    one.expected = ("409 (Conflict)", "404 (Not Found)")
    one.ask("What is 2 + 3?", wait=False)
    question(one)
    one.page.evaluate("document.querySelector('.composer [aria-label=Stop]').click()")
    one.page.wait_for_selector("dialog.question[open]", state="detached")
    one.settled()
    assert "Stopped." in one.answer() and on.calls == []


def test_what_a_server_asks_is_a_form(stage: Any, visit: Visits) -> None:
    on = stage(CALL, "Told.", manner="asks")
    one = begun(visit, on)
    one.ask("What is 2 + 3?", wait=False)
    question(one)
    one.press("Once")
    one.page.wait_for_selector("text=A server asks you")
    shot(one, "form")
    one.page.get_by_label("n", exact=True).fill("4")
    one.press("Tell the server")
    one.page.wait_for_selector("text=Told.")
    assert '"n": 4' in on.engine.prompts[1] and '"way": "up"' in on.engine.prompts[1]


def test_without_the_token_there_are_no_tools(stage: Any, visit: Visits) -> None:
    on = stage("ok")
    one = visit(address=on.address)
    one.ask("Hello")
    assert not one.page.query_selector("[aria-label=Tools]") and "ok" in one.answer()


def test_the_dialogs_are_accessible(stage: Any, visit: Visits) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed (npm ci in web/)")
    on = stage(CALL, "It is 5.")
    one = begun(visit, on)
    one.ask("What is 2 + 3?", wait=False)
    question(one)
    one.page.evaluate(AXE.read_text())
    found = one.page.evaluate("axe.run(document.querySelector('dialog.question'))")
    assert found["violations"] == [], [v["id"] for v in found["violations"]]
    one.press("No")
    one.page.wait_for_selector("text=It is 5.")
