"""Several models behind one server: loaded on demand, once, within one budget, the longest unused leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from minicpm4 import AsyncLLM
from minicpm4.errors import CheckpointError, EngineError
from minicpm4.progress import Progress
from minicpm4.serve.app import Server, create_app
from minicpm4.serve.offers import Offer
from minicpm4.serve.settings import ServeSettings
from minicpm4.serve.shelf import Shelf
from minicpm4.testing import ScriptedEngine
from tests.asgi import client_of
from tests.serve.conftest import CHAT, HELLO
from tests.waiting import PATIENCE, until_true

VERSION = {"anthropic-version": "2023-06-01"}


@dataclass
class Stock:
    """A server of scripted models. ``loads``: names in the order of their loads; ``hold``: loads of a name
    wait for its event; ``fails``: what the loads of a name raise; ``parts``: what they answer."""

    app: Server
    loads: list[str] = field(default_factory=list)
    hold: dict[str, threading.Event] = field(default_factory=dict)
    fails: dict[str, Exception] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)

    def load(self, name: str) -> AsyncLLM:
        self.loads.append(name)
        if name in self.hold:
            assert self.hold[name].wait(PATIENCE)
        if name in self.fails:
            raise self.fails[name]
        engine = ScriptedEngine([self.parts.get(name, f"I am {name}")])
        return AsyncLLM.over(engine, engine.text, name=name)

    def client(self) -> httpx.AsyncClient:
        return client_of(self.app)

    @property
    def loaded(self) -> list[str]:
        return [one.name for one in self.app.shelf.services if one.is_loaded]

    def run(self, play: Callable[[httpx.AsyncClient], Any]) -> None:
        async def go() -> None:
            async with self.client() as client:
                await play(client)

        asyncio.run(go())


@pytest.fixture
def stock() -> Iterator[Callable[..., Stock]]:
    """``stock(budget, a=60, b=30, …)``: models and what they take."""
    made: list[Stock] = []

    def start(budget: int | None = None, page: Path | None = None, **sizes: int) -> Stock:
        engine = ScriptedEngine()
        facts = Offer.loaded(AsyncLLM.over(engine, engine.text, name="any"))

        def loader(name: str) -> Callable[[Progress | None], AsyncLLM]:
            return lambda progress: one.load(name)

        offers = [replace(facts, names=(n,), nbytes=size, load=loader(n)) for n, size in sizes.items()]
        settings = ServeSettings(page=page, timeout=20)
        one = Stock(create_app(Shelf(offers, settings, budget)))
        made.append(one)
        return one

    yield start
    for one in made:
        one.app.shelf.close()


async def said(client: httpx.AsyncClient, model: str | None = None) -> str:
    body = {"messages": HELLO, **({} if model is None else {"model": model})}
    answer = (await client.post(CHAT, json=body)).json()
    assert answer["model"] in answer["choices"][0]["message"]["content"]
    return str(answer["model"])


def test_the_field_picks_one_and_no_field_the_first(stock: Any) -> None:
    one = stock(a=1, b=1)

    async def play(client: httpx.AsyncClient) -> None:
        assert [await said(client), await said(client, "b"), await said(client, "a")] == ["a", "b", "a"]
        assert one.loads == ["a", "b"]  # no budget: both stay
        for path, body in [
            ("/v1/completions", {"prompt": "x"}),
            ("/v1/responses", {"input": "x"}),
            ("/v1/messages", {"messages": HELLO, "max_tokens": 9}),
        ]:
            answer = await client.post(path, json={"model": "b", **body})
            assert answer.json()["model"] == "b" and "I am b" in answer.text

    one.run(play)


def test_an_unknown_name_is_a_404_in_the_form_of_its_api(stock: Any) -> None:
    one = stock(a=1, b=1)

    async def play(client: httpx.AsyncClient) -> None:
        for path, body in [
            (CHAT, {"messages": HELLO}),
            ("/v1/completions", {"prompt": "x"}),
            ("/v1/embeddings", {"input": "x"}),
            ("/v1/responses", {"input": "x"}),
            ("/tokenize", {"content": "x"}),
        ]:
            answer = await client.post(path, json={"model": "c", **body})
            assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
        body = {"model": "c", "messages": HELLO, "max_tokens": 9}
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            answer = await client.post(path, json=body, headers=VERSION)
            assert answer.status_code == 404 and answer.json()["error"]["type"] == "not_found_error"
            assert "a, b" in answer.json()["error"]["message"]
        assert (await client.get("/props?model=c")).status_code == 404
        assert one.loads == []

    one.run(play)


def test_what_is_told_of_models_loads_none(stock: Any) -> None:
    one = stock(10, a=6, b=6)

    async def play(client: httpx.AsyncClient) -> None:
        assert await said(client, "b") == "b"
        listed = (await client.get("/v1/models")).json()["data"]
        assert [(m["id"], m["status"]["value"], m["max_model_len"]) for m in listed] == [
            ("a", "unloaded", 4096),
            ("b", "loaded", 4096),
        ]
        told = (await client.get("/v1/models", headers=VERSION)).json()
        assert [m["id"] for m in told["data"]] == ["a", "b"] and told["last_id"] == "b"
        props = (await client.get("/props?model=a")).json()
        assert props["model"] == "a" and props["n_ctx"] == 4096 and props["status"]["value"] == "unloaded"
        assert (await client.get("/props?model=b")).json()["status"]["value"] == "loaded"
        figures = (await client.get("/metrics")).text
        assert 'minicpm4_model_loaded{model="b"} 1.0' in figures
        assert 'minicpm4_model_loaded{model="a"} 0.0' in figures
        assert 'minicpm4_generated_tokens_total{model="b"} 7.0' in figures
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert one.loads == ["b"]

    one.run(play)


def test_the_longest_unused_leaves_first(stock: Any) -> None:
    one = stock(100, a=40, b=40, c=40, d=90)

    async def play(client: httpx.AsyncClient) -> None:
        for name in ("a", "b", "a", "c"):
            await said(client, name)
        assert one.loaded == ["a", "c"]
        await said(client, "b")
        assert one.loaded == ["b", "c"]
        await said(client, "d")
        assert one.loaded == ["d"]

    one.run(play)


def test_two_who_ask_load_it_once_and_chats_of_the_other_go_on(stock: Any) -> None:
    one = stock(100, a=40, b=40)
    one.hold["b"] = threading.Event()

    async def play(client: httpx.AsyncClient) -> None:
        await said(client, "a")
        two = [asyncio.ensure_future(said(client, "b")) for _ in range(2)]
        await until_true(lambda: one.loads == ["a", "b"])
        assert [await said(client, "a") for _ in range(3)] == ["a"] * 3
        assert (await client.get("/v1/models")).json()["data"][1]["status"]["value"] == "loading"
        assert not any(task.done() for task in two)
        one.hold["b"].set()
        assert await asyncio.gather(*two) == ["b", "b"] and one.loads == ["a", "b"]

    one.run(play)


@pytest.mark.parametrize("stream", [False, True])
def test_one_with_a_request_under_way_is_waited_for(stock: Any, stream: bool) -> None:
    one = stock(100, a=60, b=60)
    release = threading.Event()
    one.parts["a"] = ["I am", release, " a"]

    async def play(client: httpx.AsyncClient) -> None:
        body = {"messages": HELLO, "model": "a", "stream": stream}
        long = asyncio.ensure_future(client.post(CHAT, json=body))
        await until_true(lambda: one.app.shelf.services[0].users == 1)
        other = asyncio.ensure_future(said(client, "b"))
        await until_true(lambda: one.app.shelf.services[0].leaving)
        late = asyncio.ensure_future(client.post(CHAT, json={**body, "stream": False}))
        await asyncio.sleep(0.05)
        assert one.loaded == ["a"] and not other.done()
        one.parts["a"] = "I am a again"
        release.set()
        text = (await long).text
        assert '"finish_reason": "stop"' in text and ("[DONE]" in text) == stream
        assert await other == "b"
        # Who asked for a while b was waited for is not let in before it, and not forgotten.
        assert "again" in (await late).text
        assert one.loads == ["a", "b", "a"] and one.loaded == ["a"]

    one.run(play)


def test_a_load_that_fails_is_an_error_for_those_who_asked(stock: Any) -> None:
    one = stock(100, a=60, b=60)
    one.fails["b"] = CheckpointError("b.safetensors is damaged")
    one.hold["b"] = threading.Event()

    async def play(client: httpx.AsyncClient) -> None:
        await said(client, "a")
        body = {"messages": HELLO, "model": "b", "max_tokens": 9}
        two = [asyncio.ensure_future(client.post(CHAT, json=body)) for _ in range(2)]
        two.append(asyncio.ensure_future(client.post("/v1/messages", json=body, headers=VERSION)))
        await until_true(lambda: one.loads[-1] == "b")
        one.hold["b"].set()
        for answer in await asyncio.gather(*two):
            assert answer.status_code == 500 and "b.safetensors is damaged" in answer.text
        assert one.loads == ["a", "b"] and one.app.shelf.count == 0
        assert await said(client, "a") == "a"
        one.fails["b"] = MemoryError()
        answer = await client.post(CHAT, json=body)
        assert answer.status_code == 503 and "retry-after" in answer.headers
        del one.fails["b"]
        assert await said(client, "b") == "b" and one.loaded == ["b"]

    one.run(play)


def test_one_that_nobody_waits_for_any_more_is_not_loaded(stock: Any) -> None:
    one = stock(100, a=60, b=60)
    release = threading.Event()
    one.parts["a"] = ["I am", release, " a"]

    async def play(client: httpx.AsyncClient) -> None:
        long = asyncio.ensure_future(said(client, "a"))
        await until_true(lambda: one.app.shelf.services[0].users == 1)
        shelf = one.app.shelf
        gone = asyncio.ensure_future(shelf.borrow(shelf.find("b")))
        await until_true(lambda: shelf.services[0].leaving)
        gone.cancel()
        await until_true(lambda: not shelf.services[0].leaving)
        release.set()
        assert await long == "a" and one.loads == ["a"] and shelf.services[1].users == 0

    one.run(play)


def test_many_who_ask_for_all_are_all_answered(stock: Any) -> None:
    one = stock(100, a=40, b=50, c=60, d=100)

    async def play(client: httpx.AsyncClient) -> None:
        asked = ["abcd"[(i * i + i // 3) % 4] for i in range(48)]
        assert await asyncio.gather(*(said(client, name) for name in asked)) == asked
        shelf = one.app.shelf
        assert shelf.count == 0 and not any(s.users or s.waiting or s.leaving for s in shelf.services)

    one.run(play)


def test_an_ending_server_lets_nobody_wait_for_a_load(stock: Any) -> None:
    one = stock(100, a=60, b=60)
    one.hold["b"] = threading.Event()

    async def play(client: httpx.AsyncClient) -> None:
        waiting = asyncio.ensure_future(client.post(CHAT, json={"messages": HELLO, "model": "b"}))
        await until_true(lambda: one.loads == ["b"])
        ending = asyncio.ensure_future(one.app.shelf.drain(0.1))
        assert (await waiting).status_code == 503
        await ending
        one.hold["b"].set()

    one.run(play)


def long_load(begun: threading.Event, ended: list[str]) -> Callable[[Progress | None], AsyncLLM]:
    """A load of ten minutes, which sets ``begun`` and notes in ``ended`` what broke it off."""

    def load(progress: Progress | None) -> AsyncLLM:
        assert progress is not None
        begun.set()
        try:
            for layer in range(60_000):
                threading.Event().wait(0.01)
                progress(layer, 60_000)
        except EngineError as error:
            ended.append(str(error))
            raise
        raise AssertionError("it was loaded to its end")

    return load


def test_a_server_that_is_closed_loads_nothing_to_its_end() -> None:
    begun, ended = threading.Event(), list[str]()
    engine = ScriptedEngine(["a"])
    first = Offer.loaded(AsyncLLM.over(engine, engine.text, name="a"))
    second = replace(first, names=("b",), load=long_load(begun, ended))
    shelf = Shelf([first, second], ServeSettings())

    async def play() -> None:
        task = asyncio.ensure_future(shelf.borrow(shelf.find("b")))
        await asyncio.to_thread(begun.wait, PATIENCE)
        task.cancel()

    thread = threading.Thread(target=lambda: (begun.wait(PATIENCE), shelf.close()))
    thread.start()
    asyncio.run(play())
    thread.join(PATIENCE)
    shelf.close()
    assert ended == ["the server is ending"]


def test_a_model_whose_engine_has_died_is_told_of(serve: Any) -> None:
    server = serve(["a"])
    service = server.app.service
    assert not service.has_died and server.ask("GET", "/health").json() == {"status": "ok"}

    class Dead:
        @property
        def load(self) -> None:
            raise EngineError("its thread has ended")

    service.put(type("Held", (), {"llm": Dead()})())
    assert service.has_died and service.status == "failed"
    answer = server.ask("GET", "/health")
    assert answer.status_code == 503 and answer.json() == {"status": "failed", "models": [service.name]}
    assert "minicpm4_pages_held" in server.ask("GET", "/metrics").text
