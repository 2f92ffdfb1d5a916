"""``minicpm4 serve A B`` with real models, of which one at a time fits, and what it refuses at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minicpm4 import zoo
from minicpm4.engine.load import inspect
from minicpm4.engine.options import EngineOptions
from minicpm4.errors import MemoryPlanError
from minicpm4.machine import default_threads, system
from minicpm4.serve.offers import shared
from tests.cli.conftest import Result, minicpm
from tests.serve.processes import Running, small

__all__ = ["minicpm"]
NAME = "smollm2-135m-instruct"
CHAT = "/v1/chat/completions"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second model, of its own file."""
    file = tmp_path_factory.mktemp("model") / "second.gguf"
    shutil.copy(zoo.resolve(NAME), file)
    return file


@pytest.fixture(scope="module")
def needed() -> int:
    """Bytes that either takes."""
    return inspect(NAME, EngineOptions(context=2048, threads=2, max_batch=4)).plan.needed


@pytest.fixture(scope="module")
def server(copy: Path, needed: int) -> Iterator[Running]:
    memory = f"{1.5 * needed / 1e9:.3f}"
    options = ("--max-batch", "4", "--memory", memory, "--name", "one", "--name", "two")
    with small(NAME, str(copy), *options) as running:
        yield running


def resident(running: Running) -> int:
    """Bytes of its own memory, mapped files apart."""
    text = system.read_text(system.PROC / str(running.process.pid) / "status")
    (kilobytes,) = (line.split()[1] for line in text.splitlines() if line.startswith("RssAnon"))
    return int(kilobytes) * 1024


def loaded(running: Running) -> list[str]:
    listed = running.http.get("/v1/models").json()["data"]
    return [one["id"] for one in listed if one["status"]["value"] == "loaded"]


def answer(running: Running, model: str) -> Any:
    body = {"model": model, "messages": FRANCE, "max_tokens": 12, "temperature": 0}
    return running.http.post(CHAT, json=body).json()


def test_each_is_loaded_when_asked_for_within_one_budget(server: Running, needed: int) -> None:
    assert loaded(server) == ["one"]
    held = []
    for model in ("one", "two") * 4:
        told = answer(server, model)
        assert told["model"] == model and "Paris" in told["choices"][0]["message"]["content"]
        assert loaded(server) == [model]
        held.append(resident(server))
    # From the second on: each text stays, once it was read. A quarter of a model in six loads is a leak; less
    # may be threads that a busy machine had to start, each with an arena of the allocator's own.
    assert max(held[2:]) < held[1] + needed / 4, "what was unloaded was not given back"
    assert server.metric("minicpm4_model_loads_total") == 7 and server.metric("minicpm4_requests") == 0


def test_a_prompt_is_kept_while_its_model_is_away(copy: Path, needed: int, tmp_path: Path) -> None:
    memory = f"{1.9 * needed / 1e9:.3f}"
    options = ("--max-batch", "4", "--memory", memory, "--cache-dir", str(tmp_path))
    river = [{"role": "user", "content": "The river runs to the sea. " * 30 + "Where does it run?"}]

    def cached(model: str) -> int:
        body = {"model": model, "messages": river, "max_tokens": 2}
        usage = running.http.post(CHAT, json=body).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    with small(NAME, str(copy), *options) as running:
        assert [cached(NAME), cached(str(copy)), loaded(running)] == [0, 0, [str(copy)]]
        assert cached(NAME) >= 128 and loaded(running) == [NAME]


def test_who_asks_for_both_at_once_is_answered(server: Running) -> None:
    with ThreadPoolExecutor(6) as pool:
        told = list(pool.map(lambda model: answer(server, model), ["one", "two"] * 3))
    assert [one["model"] for one in told] == ["one", "two"] * 3
    assert all("Paris" in one["choices"][0]["message"]["content"] for one in told)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--memory", "0.05"], f"{NAME}: a context of"),
        (["--memory", "0"], "--memory 0"),
        (["--name", "one"], "2 models"),
        (["--name", "one", "--name", "one"], "called 'one'"),
    ],
)
def test_what_can_never_be_served_is_refused(
    minicpm: Callable[..., Result], copy: Path, options: list[str], said: str
) -> None:
    result = minicpm("serve", NAME, str(copy), "--context", "2048", "--port", "0", *options)
    assert result.code == 2 and said in result.err and result.err.count("\n") == 1


def test_several_processes_share_what_the_machine_has(needed: int) -> None:
    asked = EngineOptions(context=2048, max_batch=4, memory=3 * needed)
    each = shared([NAME], asked, (), 3)
    assert each.memory == needed and each.threads == max(1, default_threads() // 3)
    assert shared([NAME], replace(asked, threads=2), (), 3).threads == 2
    with pytest.raises(MemoryPlanError):
        shared([NAME], replace(asked, memory=2 * needed), (), 30)


def test_it_says_by_which_names_it_is_asked(server: Running) -> None:
    assert server.said.startswith("one, two at http://")
    for name in ("one", "two"):
        assert server.http.get(f"/v1/models/{name}").json()["id"] == name
