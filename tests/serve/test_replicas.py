"""Two replicas of a real model on Ray Serve (`make test-ray`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.processes import PYTHON, ROOT, Running, small
from tests.waiting import until

pytest.importorskip("ray", reason="ray is not installed here: make test-ray")
pytestmark = pytest.mark.slow
CHAT = "/v1/chat/completions"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    kept = str(tmp_path_factory.mktemp("kept"))
    with small("--replicas", "2", "--threads", "1", "--cache-dir", kept) as running:
        yield running


def ask(running: Running, stream: bool) -> str:
    """The text of an answer."""
    body = {"messages": FRANCE, "max_tokens": 12, "temperature": 0, "stream": stream}
    response = httpx.post(f"{running.address}{CHAT}", json=body, timeout=120)
    response.raise_for_status()
    if not stream:
        return str(response.json()["choices"][0]["message"]["content"])
    assert response.text.rstrip().endswith("data: [DONE]")
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    return "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])


def eight(running: Running) -> list[str]:
    """Eight chats together, every second one streamed."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda i: ask(running, i % 2 == 1), range(8)))


def replicas(running: Running) -> set[int]:
    """Processes of replicas, those alone that this server has started."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "status").read_text(encoding="utf-8")
            names[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        parents[int(folder.name)] = int(status.partition("\nPPid:")[2].split()[0])
    found = set()
    for one, name in names.items():
        above = one
        while above in parents and above != running.process.pid:
            above = parents[above]
        if above == running.process.pid and name.startswith("ray::ServeReplica"):
            found.add(one)
    return found


def test_parallel_chats_are_answered_by_two_processes(server: Running) -> None:
    assert len(replicas(server)) == 2
    answers = eight(server)
    assert len(set(answers)) == 1 and "Paris" in answers[0]
    figures = [server.metric("minicpm4_generated_tokens_total") for _ in range(4)]
    assert all(figures) and sum(figures[:2]) == sum(figures[2:])  # requests go round, these too


def test_what_one_has_read_the_other_finds(server: Running) -> None:
    text = [{"role": "user", "content": "The river runs to the sea. " * 30 + "Where does it run?"}]
    cached = []
    for _ in range(4):
        told = server.http.post(CHAT, json={"messages": text, "max_tokens": 1}).json()
        cached.append(told["usage"]["prompt_tokens_details"]["cached_tokens"])
        time.sleep(0.5)  # for its pages to be written
    assert cached[0] == 0 and all(one >= 128 for one in cached[1:])


def test_pieces_come_one_by_one(server: Running) -> None:
    body = {"messages": FRANCE, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.address}{CHAT}", json=body, timeout=60) as response:
        lines = response.iter_lines()
        while not next(lines):
            pass
        # Requests for figures go round: one of the two is still at work, whatever has come.
        assert any(server.metric("minicpm4_requests") for _ in range(2))
        assert len([line for line in lines if line]) > 40


def test_a_client_that_goes_frees_its_pages(server: Running) -> None:
    body = {"messages": FRANCE, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.address}{CHAT}", json=body, timeout=60) as response:
        next(response.iter_lines())
    until(lambda: not any(server.metric("minicpm4_pages_held") for _ in range(2)))


def test_errors_are_the_servers_own(server: Running) -> None:
    refused = server.http.post(CHAT, json={"messages": FRANCE, "top_p": 7})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "top_p"
    elsewhere = server.http.get("/v1/models", headers={"Host": "evil.example"})
    assert elsewhere.status_code == 403


def test_a_replica_that_is_killed_is_replaced(server: Running) -> None:
    before = replicas(server)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    answered = 0
    while replicas(server) & {victim} or len(replicas(server)) < 2 or answered < 8:
        try:
            answered += "Paris" in ask(server, answered % 2 == 1)
        except httpx.HTTPError:  # what the dead one had been given
            time.sleep(0.2)
    assert all("Paris" in answer for answer in eight(server))
    assert len(replicas(server)) == 2 and before - replicas(server) == {victim}


def test_answers_under_way_end_before_the_server_does() -> None:
    body = {"messages": FRANCE, "max_tokens": 300, "ignore_eos": True, "stream": True}
    with small("--replicas", "2", "--threads", "1") as running:
        with httpx.stream("POST", f"{running.address}{CHAT}", json=body, timeout=60) as response:
            lines = response.iter_lines()
            got = [next(lines) for _ in range(20)]
            running.process.send_signal(signal.SIGTERM)
            got += lines
        assert [line for line in got if line][-1] == "data: [DONE]"
        assert running.process.wait(60) == 0


def test_the_example_runs() -> None:
    example = ROOT / "examples" / "two_replicas.py"
    done: Any = subprocess.run([PYTHON, str(example)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Paris") == 8


def test_a_cluster_that_is_not_there_is_named_at_once() -> None:
    command = [PYTHON, "-m", "minicpm4", "serve", "smollm2-135m-instruct", "--replicas", "2", "--port", "0"]
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and "RAY_ADDRESS = '127.0.0.1:1' is no cluster" in ended.stderr
