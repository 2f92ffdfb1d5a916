"""The page in a headless Chromium, before a server that plays a script. Without one tests skip."""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.serve.standin import Script, Server, echo

ROOT = Path(__file__).parents[2]
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 20_000  # milliseconds: machines that test are slow


@contextmanager
def chromium() -> Iterator[Any]:
    """The system's Chromium, MINICPM4_CHROMIUM, or the one that playwright installed."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed (make test-page installs it)")
    from playwright.sync_api import Error, sync_playwright

    found = os.environ.get("MINICPM4_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        except Error as error:
            pytest.skip(f"no Chromium here (apt-get install chromium): {error.message.splitlines()[0]}")
        yield browser
        browser.close()


class Visit:
    """A window: ``page`` and its ``server``, or the one that is at ``address`` already. What the console says
    and what is asked elsewhere is kept."""

    def __init__(
        self,
        browser: Any,
        script: Script = echo,
        *,
        key: str = "",
        address: str = "",
        ready: str = "select.models",
        **context: Any,
    ) -> None:
        self.address = address
        if not address:
            self.serve(Server(script, key=key))
        self.ready = ready
        self.context = browser.new_context(**{"viewport": {"width": 1100, "height": 750}, **context})
        self.context.set_default_timeout(PATIENCE)
        self.context.route("**/*", self._route)
        self.console: list[str] = []
        self.elsewhere: list[str] = []
        self.expected: tuple[str, ...] = ()
        self.page = self.open()

    def serve(self, server: Server) -> None:
        self.server, self.address = server, server.address
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def open(self) -> Any:
        page = self.context.new_page()
        page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.console.append(f"error: {error}"))
        page.goto(self.address)
        page.wait_for_selector(self.ready)
        return page

    def _route(self, route: Any) -> None:
        """There is no network but the server."""
        if route.request.url.startswith((self.address, "blob:", "data:")):
            route.continue_()
        else:
            self.elsewhere.append(route.request.url)
            route.abort()

    def ask(self, text: str, *, wait: bool = True) -> None:
        # A dialog that is on its way out still has the keyboard, and the last answer is not yet this one's.
        self.page.wait_for_selector("dialog[open]", state="detached")
        asked, answered = (self.page.locator(f".message.{who}").count() for who in ("user", "assistant"))
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")
        self.page.wait_for_selector(f".message.user >> nth={asked}")
        if wait:
            self.page.wait_for_selector(f".message.assistant >> nth={answered}")
            self.settled()

    def begin(self) -> None:
        """A new conversation, when it is there."""
        self.press("New chat", last=False)
        self.page.wait_for_selector(".welcome")

    def settled(self) -> None:
        """The answer is whole, or has failed."""
        self.page.wait_for_selector(".message.assistant >> nth=-1 >> article[aria-busy=false] .message-tools")

    def press(self, label: str, *, last: bool = True) -> None:
        found = self.page.get_by_role("button", name=label, exact=True)
        (found.last if last else found.first).click()

    def answer(self) -> str:
        return self.page.locator(".message.assistant").last.inner_text()

    def close(self) -> None:
        self.context.close()
        if hasattr(self, "server"):
            self.server.shutdown()
            self.server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """``visit(script, …)`` opens a window. In the end the console has said nothing but what the
    test expected, and nothing was asked of another machine."""
    made: list[Visit] = []

    def make(script: Script = echo, **context: Any) -> Visit:
        made.append(Visit(browser, script, **context))
        return made[-1]

    yield make
    for one in made:
        one.close()
        unexpected = [line for line in one.console if not any(words in line for words in one.expected)]
        assert not unexpected, "\n".join(unexpected)
        assert not one.elsewhere, one.elsewhere
