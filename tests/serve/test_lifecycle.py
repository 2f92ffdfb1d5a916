"""Who is let in, for how long, and that a request ends when its client goes: pages come back."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from minicpm4.errors import ConfigError
from minicpm4.serve.app import Server
from minicpm4.serve.run import Socket
from minicpm4.serve.settings import ServeSettings
from tests.serve.conftest import CHAT, HELLO, events
from tests.waiting import until_true

KEY = "a-key-of-some-length"
LOCAL = {"host": "localhost:8000"}


async def asked(app: Server, body: Any, gone: asyncio.Event, path: str = CHAT) -> list[Any]:
    """What an ASGI server is sent for one request, whose client goes when ``gone`` is set."""
    sent: list[Any] = []
    left = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive() -> Any:
        if left:
            return left.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_pages_come_back_when_the_client_goes(serve: Any, stream: bool, path: str) -> None:
    server = serve("x" * 3000)
    body = {
        "stream": stream,
        "max_tokens": 3000,
        **({"messages": HELLO} if path == CHAT else {"prompt": "a"}),
    }

    async def run() -> None:
        gone = asyncio.Event()
        request = asyncio.ensure_future(asked(server.app, body, gone, path))
        await until_true(lambda: server.engine.load.pages_held > 0)
        assert not request.done()
        gone.set()
        await request
        await until_true(lambda: server.engine.load.pages_held == 0)
        assert server.app.service.gate.count == 0 and not server.engine.has_work
        figures = server.app.service.metrics.text().decode()
        assert "minicpm4_clients_gone_total 1.0" in figures
        # It was ended, and did not end.
        assert 'minicpm4_generated_tokens_total{model="scripted"} 0.0' in figures

    asyncio.run(run())


def test_a_full_queue_is_a_429(serve: Any) -> None:
    release = threading.Event()
    server = serve(["a", release, "b"], engine={"max_sequences": 1}, max_waiting=1)

    async def run() -> None:
        async with server.client() as client:
            body = {"messages": HELLO}
            two = [asyncio.ensure_future(client.post(CHAT, json=body)) for _ in range(2)]
            await until_true(lambda: server.app.service.gate.count == 2)
            refused = await client.post(CHAT, json=body)
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert (await client.get("/health")).status_code == 200  # no work of the engine's
            release.set()
            assert [one.status_code for one in await asyncio.gather(*two)] == [200, 200]
            assert (await client.post(CHAT, json=body)).status_code == 200

    asyncio.run(run())


COUNTED = [
    ("/v1/completions", {"prompt": ["a", "b", "c", "d"]}, 2),
    ("/v1/completions", {"prompt": [1, 2], "n": 3}, 3),
    ("/v1/completions", {"prompt": [[1], [2], [3]], "n": 2}, 4),
    ("/v1/embeddings", {"input": ["a"] * 1024}, 2),
    (CHAT, {"messages": HELLO, "n": 4}, 4),
]


@pytest.mark.parametrize(("path", "body", "size"), COUNTED, ids=str)
def test_a_body_counts_as_what_runs_of_it_at_a_time(serve: Any, path: str, body: Any, size: int) -> None:
    """1,024 prompts in one body were one request: 64 such bodies were let wait. Two run, of four places."""
    server = serve(engine={"max_sequences": 4}, max_waiting=0)
    gate = server.app.service.gate
    held = gate.enter(4 - size + 1)
    refused = server.post(path, **body)
    assert refused.status_code == 429 and f"asks for {size:,}" in refused.json()["error"]["message"]
    held.leave()
    gate.enter(4 - size)
    taken = server.post(path, **body)
    assert taken.status_code in (200, 501), taken.text  # a scripted engine has no vectors


def test_more_answers_than_there_is_room_for_are_refused_for_good(serve: Any) -> None:
    response = serve(engine={"max_sequences": 2}, max_waiting=1).post(CHAT, messages=HELLO, n=4)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == "n" and "room for 3" in error["message"]


def test_a_text_that_is_scored_ends_when_its_client_goes(serve: Any) -> None:
    release = threading.Event()
    server = serve(["a", release, "b"])

    async def run() -> None:
        async with server.client() as client:
            chat = asyncio.ensure_future(client.post(CHAT, json={"messages": HELLO}))
            await until_true(lambda: server.engine.load.running == 1)
            body = {"prompt": "x" * 4000, "echo": True, "logprobs": 1, "max_tokens": 0}
            scored = asyncio.ensure_future(client.post("/v1/completions", json=body))
            await until_true(lambda: server.app.service.gate.count == 2)
            scored.cancel()
            await until_true(lambda: server.app.service.gate.count == 1)
            release.set()
            assert (await chat).status_code == 200
            await until_true(lambda: server.engine.load.pages_held == 0 and not server.engine.has_work)

    asyncio.run(run())


@pytest.mark.parametrize(("stream", "seconds"), [(False, 0.3), (True, 4.0)])
def test_an_answer_that_takes_too_long_ends(serve: Any, stream: bool, seconds: float) -> None:
    """A stream has begun when its time is over: its first token comes before, on a busy machine, too."""
    release = threading.Event()
    server = serve(["abc", release, "def"], timeout=seconds)
    try:
        response = server.chat(stream=stream)
    finally:
        release.set()
    error = events(response)[-1]["error"] if stream else response.json()["error"]
    assert error["code"] == "timeout" and f"over {seconds:g} s" in error["message"]
    assert response.status_code == (200 if stream else 504)
    asyncio.run(until_true(lambda: server.engine.load.pages_held == 0))


def test_an_ending_server_finishes_what_is_under_way(serve: Any) -> None:
    release = threading.Event()
    server = serve(["a", release, "b"])

    async def run() -> None:
        async with server.client() as client:
            under_way = asyncio.ensure_future(client.post(CHAT, json={"messages": HELLO}))
            await until_true(lambda: server.engine.load.pages_held > 0)
            ending = asyncio.ensure_future(server.app.service.gate.drain(20))
            await asyncio.sleep(0)
            refused = await client.post(CHAT, json={"messages": HELLO})
            assert refused.status_code == 503 and "retry-after" in refused.headers
            assert (await client.get("/health")).status_code == 503
            assert not ending.done()
            release.set()
            assert (await under_way).json()["choices"][0]["message"]["content"] == "ab"
            await ending

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
def test_what_outlives_the_drain_is_ended(serve: Any, stream: bool) -> None:
    release = threading.Event()
    server = serve(["a", release, "b"])

    async def run() -> None:
        async with server.client() as client:
            body = {"messages": HELLO, "stream": stream}
            under_way = asyncio.ensure_future(client.post(CHAT, json=body))
            await until_true(lambda: server.engine.load.pages_held > 0)
            await server.app.service.gate.drain(0.1)
            response = await under_way
            error = events(response)[-1]["error"] if stream else response.json()["error"]
            assert error["code"] == "shutting_down"

    try:
        asyncio.run(run())
    finally:
        release.set()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong-key-of-length"}, 401),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"authorization": f"bearer {KEY}"}, 200),
        ({"x-api-key": KEY}, 200),
    ],
)
def test_keys(serve: Any, headers: Any, status: int) -> None:
    server = serve(api_keys=("another-key-there", KEY))
    response = server.ask("GET", "/v1/models", headers=headers)
    assert response.status_code == status
    if status == 401:
        assert response.json()["error"]["type"] == "authentication_error"
        assert response.headers["www-authenticate"] == "Bearer"
    assert server.ask("GET", "/health").status_code == 200
    assert server.ask("GET", "/metrics", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost"}, 200),
        ({"host": "127.0.0.1:9"}, 200),
        ({"host": "[::1]:9"}, 200),
        ({"host": "LOCALHOST."}, 200),
        ({"host": "named.example"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": ""}, 403),
        ({**LOCAL, "origin": "http://localhost:8000"}, 200),
        ({**LOCAL, "origin": "https://friend.example"}, 200),
        ({**LOCAL, "origin": "http://localhost:9000"}, 403),
        ({**LOCAL, "origin": "http://evil.example"}, 403),
        ({**LOCAL, "origin": "null"}, 403),
    ],
)
def test_pages_of_elsewhere_are_refused(serve: Any, headers: Any, status: int) -> None:
    server = serve(hosts=("named.example",), origins=("https://friend.example",))
    for path in ("/v1/models", "/health"):
        response = server.ask("GET", path, headers=headers)
        assert response.status_code == status
        assert "access-control-allow-origin" not in response.headers


def test_the_page_is_served_under_a_strict_policy(serve: Any, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>page")
    (tmp_path / "app.js").write_text("1")
    (tmp_path / "secret").mkdir()
    server = serve(page=tmp_path, api_keys=(KEY,))
    page = server.ask("GET", "/")
    assert page.text == "<p>page" and page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
    assert server.ask("GET", "/app.js").headers["content-type"].startswith("text/javascript")
    for path in ("/secret/../app.js/", "/secret", "/%2e%2e/pyproject.toml", "/index.html.bak"):
        assert server.ask("GET", path).status_code in (401, 404)
    assert serve().ask("GET", "/").status_code == 404


def test_the_log_has_the_path_that_was_asked_for(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "minicpm4.serve")
    server = serve()
    for path in ("/v1/chat/completion?key=hush", "/v1/caf%C3%A9%0A%1B[2J", f"/{'x' * 5000}", "/v1/models/no"):
        assert server.ask("GET", path).status_code == 404
    said = [record.getMessage() for record in caplog.records if " 404 " in record.getMessage()]
    assert [line.split(" 404 ")[0] for line in said] == [
        "GET /v1/chat/completion",
        "GET /v1/caf%C3%A9%0A%1B%5B2J",  # a line of the log stays one, and steers no terminal
        f"GET /{'x' * 78}…",
        "GET /v1/models/no",
    ]
    told = server.ask("GET", "/metrics").text  # the labels are few, whatever is asked for
    assert 'path="other",status="404"} 3.0' in told and "xxx" not in told and "caf" not in told


def test_the_log_has_no_prompts_unless_asked(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "minicpm4.serve")
    serve().chat(messages=[{"role": "user", "content": "my secret"}])
    assert "POST /v1/chat/completions 200" in caplog.text and "secret" not in caplog.text
    serve(log_prompts=True).chat(messages=[{"role": "user", "content": "my secret"}])
    assert "my secret" in caplog.text


@pytest.mark.parametrize(
    ("where", "keys", "said"),
    [
        ({"host": "0.0.0.0"}, (), "no API key"),
        ({"host": "::"}, (), "no API key"),
        ({"host": "example.org"}, (), "no API key"),
        ({"port": 70000}, (), "70000"),
        ({"certificate": Path("a.pem")}, (), "both"),
        ({"certificate": Path("a.pem"), "key": Path("b.pem")}, (), "a.pem"),
        ({"host": "0.0.0.0"}, (KEY,), None),
        ({"host": "::1"}, (), None),
        ({}, (), None),
    ],
)
def test_where_a_server_may_listen(where: Any, keys: tuple[str, ...], said: str | None) -> None:
    settings = ServeSettings(api_keys=keys)
    if said is None:
        Socket(**where).check(settings)
    else:
        with pytest.raises(ConfigError, match=said):
            Socket(**where).check(settings)


def test_a_port_that_is_taken_is_known_before_a_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = Socket(port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="another server"):
            where.open(ServeSettings())
    with pytest.raises(ConfigError, match="no-such-host"):
        Socket(host="no-such-host.invalid").open(ServeSettings(api_keys=(KEY,)))


def test_settings_are_checked() -> None:
    for wrong in ({"api_keys": ("short",)}, {"timeout": 0}, {"max_waiting": -1}, {"max_body": 5}):
        with pytest.raises(ConfigError):
            ServeSettings(**wrong)
    assert KEY not in repr(ServeSettings(api_keys=(KEY,)))
