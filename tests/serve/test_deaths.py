"""Engines that die by an exception: the model is loaded again, but not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import ref

import httpx
import pytest

from minicpm4.engine.options import EngineOptions
from minicpm4.serve import service as services
from minicpm4.serve.app import Server, create_app
from minicpm4.serve.settings import ServeSettings
from minicpm4.serve.shelf import Shelf
from tests.asgi import client_of
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.serve.conftest import CHAT, HELLO
from tests.waiting import until_true

BODY: dict[str, Any] = {"messages": HELLO, "max_tokens": 3}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def app(checkpoint: Path) -> Iterator[Server]:
    options = EngineOptions(context=256, threads=1, max_batch=4)
    shelf = Shelf.planned([checkpoint], options, ServeSettings(page=None, timeout=60))
    shelf.load_first()
    yield create_app(shelf)
    shelf.close()


def strike(app: Server) -> None:
    """The next step of the engine ends its thread."""
    engine: Any = app.service.llm.driver._engine

    def step() -> None:
        raise SystemExit("struck down")

    engine.step = step


def play(app: Server, acts: Callable[[httpx.AsyncClient], Any]) -> None:
    async def run() -> None:
        async with client_of(app, timeout=60) as client:
            await acts(client)

    asyncio.run(run())


def test_a_model_that_died_is_unloaded_and_comes_again(app: Server) -> None:
    async def acts(client: httpx.AsyncClient) -> None:
        first = (await client.post(CHAT, json={**BODY, "temperature": 0})).json()["choices"]
        old = ref(app.service.llm)
        strike(app)
        failed = await asyncio.gather(*(client.post(CHAT, json=BODY) for _ in range(3)))
        assert [one.status_code for one in failed] == [503] * 3
        assert "struck down" in failed[0].text and failed[0].headers["Retry-After"]
        await until_true(lambda: not app.service.is_loaded)
        await until_true(lambda: old() is None)  # with its memory
        health = await client.get("/health")
        assert (health.status_code, health.json()) == (200, {"status": "ok"})
        again = await client.post(CHAT, json={**BODY, "temperature": 0})
        assert again.json()["choices"] == first and app.service.is_loaded
        assert "minicpm4_requests{" in (await client.get("/metrics")).text
        assert app.service.users == 0

    play(app, acts)


def test_a_stream_says_so_and_the_next_is_whole(app: Server) -> None:
    async def acts(client: httpx.AsyncClient) -> None:
        strike(app)
        told = await client.post(CHAT, json={**BODY, "stream": True})
        assert "struck down" in told.text and "engine_error" in told.text
        assert "error" not in (await client.post(CHAT, json={**BODY, "stream": True})).text

    play(app, acts)


async def die(app: Server, client: httpx.AsyncClient) -> None:
    assert (await client.post(CHAT, json=BODY)).status_code == 200
    strike(app)
    assert (await client.post(CHAT, json=BODY)).status_code == 503
    await until_true(lambda: not app.service.is_loaded)


def test_the_third_death_within_minutes_is_the_last(app: Server) -> None:
    async def acts(client: httpx.AsyncClient) -> None:
        for _ in range(2):
            await die(app, client)
            assert (await client.get("/health")).status_code == 200
        await die(app, client)
        for _ in range(2):
            refused = await client.post(CHAT, json=BODY)
            assert refused.status_code == 503 and "3 times in 5 minutes" in refused.json()["error"]["message"]
        health = await client.get("/health")
        assert health.status_code == 503
        assert health.json() == {"status": "failed", "models": [app.service.name]}
        assert (await client.get("/props")).json()["status"]["value"] == "failed"
        assert not app.service.is_loaded

    play(app, acts)


def test_deaths_that_lie_apart_are_no_loop(app: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "WITHIN", -1.0)

    async def acts(client: httpx.AsyncClient) -> None:
        for _ in range(4):
            await die(app, client)
        assert (await client.post(CHAT, json=BODY)).status_code == 200
        assert (await client.get("/health")).status_code == 200

    play(app, acts)
