"""The page before the server itself, over a scripted engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from minicpm4.serve.settings import PAGE
from tests.serve.browser import Visit, browser, visit
from tests.serve.conftest import Scripted
from tests.serve.test_shelf import stock
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.browser
__all__ = ["browser", "stock", "visit"]
Visits = Callable[..., Visit]


@pytest.fixture
def listen() -> Iterator[Callable[[Scripted], str]]:
    """``listen(scripted)``: the address of a server on a socket."""
    made: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(scripted: Scripted) -> str:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await scripted.app(scope, receive, send)

        server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        made.append((server, thread))
        until(lambda: server.started)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"

    yield start
    for server, thread in made:
        server.should_exit = True
        thread.join(PATIENCE)


def start(serve: Any, *answers: Any, **more: Any) -> Scripted:
    return serve(*answers, page=PAGE, **more)


def test_a_chat_of_two_turns(serve: Any, listen: Any, visit: Visits) -> None:
    scripted = start(serve, "It is **Paris**.", "About two million.")
    one = visit(address=listen(scripted))
    one.ask("The capital of France?")
    assert one.page.inner_text(".markdown strong") == "Paris"
    one.ask("How many live there?")
    assert "About two million." in one.answer() and "cached" in one.answer() and "scripted" in one.answer()
    assert "It is **Paris**." in scripted.engine.prompts[1]


def test_settings_reach_the_engine(serve: Any, listen: Any, visit: Visits) -> None:
    scripted = start(serve, "ok")
    one = visit(address=listen(scripted))
    one.press("Settings")
    one.page.fill("[name=temperature]", "0.5")
    one.page.fill("[name=seed]", "3")
    one.page.get_by_label("System prompt").fill("Be brief.")
    one.press("Close the settings")
    one.ask("Hello")
    (params,) = scripted.engine.params
    assert (params.temperature, params.seed) == (0.5, 3)
    assert "Be brief." in scripted.engine.prompts[0]


def test_stop_frees_the_engine(serve: Any, listen: Any, visit: Visits) -> None:
    go_on = threading.Event()
    scripted = start(serve, ["Some words", go_on, "never seen"])
    one = visit(address=listen(scripted))
    one.ask("Go", wait=False)
    one.page.wait_for_selector("text=Some words")
    one.press("Stop")
    one.settled()
    go_on.set()
    until(lambda: not scripted.app.service.gate.count)
    assert "never seen" not in one.answer()


def test_file_that_does_not_fit_is_counted_and_refused_with_both_numbers(
    serve: Any, listen: Any, visit: Visits
) -> None:
    one = visit(address=listen(start(serve, "ok", engine={"context": 256})))
    one.expected = ("400 (Bad Request)",)
    one.page.set_input_files("#files", [{"name": "a.txt", "mimeType": "", "buffer": b"x" * 1000}])
    one.page.wait_for_selector(".budget.over")
    assert "1,000 tokens, of 256" in one.page.inner_text(".budget")
    one.ask("Sum up")
    assert "256" in one.answer() and "context_length_exceeded" in one.answer() and "1,0" in one.answer()


def test_key_of_a_server_is_asked_for(serve: Any, listen: Any, visit: Visits) -> None:
    scripted = start(serve, "ok", api_keys=("a-long-secret",))
    one = visit(address=listen(scripted), ready=".key")
    one.expected = ("401 (Unauthorized)",)
    one.page.get_by_label("API key").fill("a-long-secret")
    one.press("Use this key")
    one.page.wait_for_selector("select.models")
    one.ask("Hello")
    assert "ok" in one.answer()


def test_a_conversation_chooses_its_model(stock: Any, listen: Any, visit: Visits) -> None:
    one = stock(100, page=PAGE, small=60, large=60)
    page = visit(address=listen(one))
    page.ask("Who are you?")
    assert "I am small" in page.answer() and one.loaded == ["small"]
    page.page.select_option("select.models", "large")
    page.page.wait_for_selector("select.models option:checked:text('large')", state="attached")
    assert one.loaded == ["small"]  # to choose loads nothing yet
    page.ask("And you?")
    assert "I am large" in page.answer() and one.loaded == ["large"]
    page.page.reload()
    page.page.wait_for_selector("select.models")
    assert page.page.input_value("select.models") == "large"
