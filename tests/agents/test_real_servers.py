"""A task with each of eleven real servers, by a scripted model under grammar. `make test-mcp`; each server is
installed as `minicpm4 mcp add` does, and a test whose server cannot be had says so and is skipped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from minicpm4.agents.mcp.agent import Agent, AgentOptions
from minicpm4.agents.mcp.catalogue import CATALOGUE
from minicpm4.agents.mcp.config import ServerSpec, spec_of
from minicpm4.agents.mcp.install import install, server_table
from minicpm4.agents.mcp.limits import Limits
from minicpm4.agents.mcp.transcript import Transcript
from minicpm4.errors import ToolServerError, UnsupportedError
from tests.agents.servers import Person, boxed, served
from tests.agents.test_agent import hermes, scripted

pytestmark = [pytest.mark.servers, pytest.mark.timeout(1800)]  # the first run installs
Check = Callable[[Path, Transcript], bool]
MANY = AgentOptions(most_tools=300, max_steps=20)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Calls of a server, in which {folder} is the test's own, and what is then true of folder and results."""

    server: str
    calls: tuple[tuple[str, dict[str, Any]], ...]
    check: Check
    settings: dict[str, str] = field(default_factory=dict)


def said(done: Transcript, text: str, step: int = -1) -> bool:
    return not done.steps[step].failed and text in done.steps[step].text


def in_zip(file: Path, text: str) -> bool:
    with zipfile.ZipFile(file) as archive:
        return any(text.encode() in archive.read(name) for name in archive.namelist())


def rows(file: Path, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(file)) as base:
        return base.execute(query).fetchall()


def commits(folder: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(folder / "repo"), "log", "--format=%s"], capture_output=True, text=True, check=True
    ).stdout


TASKS = (
    Task(
        server="calculator",
        calls=(("calculate", {"expression": "6 * 7"}), ("calculate", {"expression": "42 - 2"})),
        check=lambda folder, done: said(done, "42", 0) and said(done, "40"),
    ),
    Task(
        server="filesystem",
        settings={"folder": "{folder}"},
        calls=(
            ("write_file", {"path": "{folder}/a.txt", "content": "one\ntwo"}),
            ("read_text_file", {"path": "{folder}/a.txt", "head": 1}),
            ("read_text_file", {"path": "/etc/passwd"}),
        ),
        check=lambda folder, done: (
            (folder / "a.txt").read_text() == "one\ntwo" and said(done, "one", 1) and done.steps[2].failed
        ),
    ),
    Task(
        server="time",
        calls=(
            (
                "convert_time",
                {"source_timezone": "Europe/Paris", "time": "12:00", "target_timezone": "Asia/Shanghai"},
            ),
        ),
        check=lambda folder, done: said(done, "Asia/Shanghai"),
    ),
    Task(
        server="sqlite",
        settings={"file": "{folder}/base.db"},
        calls=(
            ("create_table", {"query": "CREATE TABLE t (n INTEGER)"}),
            ("write_query", {"query": "INSERT INTO t VALUES (7), (8)"}),
            ("read_query", {"query": "SELECT sum(n) AS s FROM t"}),
        ),
        check=lambda folder, done: (
            said(done, "15") and rows(folder / "base.db", "SELECT n FROM t") == [(7,), (8,)]
        ),
    ),
    Task(
        server="git",
        calls=(
            ("git_status", {"repo_path": "{folder}/repo"}),
            ("git_add", {"repo_path": "{folder}/repo", "files": ["a.txt"]}),
            ("git_commit", {"repo_path": "{folder}/repo", "message": "A file"}),
        ),
        check=lambda folder, done: commits(folder) == "A file\n",
    ),
    Task(
        server="memory",
        settings={"file": "{folder}/memory.jsonl"},
        calls=(
            (
                "create_entities",
                {"entities": [{"name": "Ann", "entityType": "person", "observations": ["likes tea"]}]},
            ),
            ("search_nodes", {"query": "tea"}),
        ),
        check=lambda folder, done: said(done, "Ann") and "likes tea" in (folder / "memory.jsonl").read_text(),
    ),
    Task(
        server="ppt",
        calls=(
            ("create_presentation", {"id": "deck"}),
            ("add_slide", {"layout_index": 0, "title": "Four facts", "presentation_id": "deck"}),
            ("save_presentation", {"file_path": "{folder}/deck.pptx", "presentation_id": "deck"}),
        ),
        check=lambda folder, done: in_zip(folder / "deck.pptx", "Four facts"),
    ),
    Task(
        server="docx",
        calls=(
            ("create_document", {"filename": "{folder}/note.docx", "title": "Note"}),
            ("add_paragraph", {"filename": "{folder}/note.docx", "text": "It works."}),
        ),
        check=lambda folder, done: in_zip(folder / "note.docx", "It works."),
    ),
    Task(
        server="code-executor",
        calls=(("run_python_code", {"code": "answer = 6 * 7", "variable_to_return": "answer"}),),
        check=lambda folder, done: said(done, "42"),
    ),
    Task(
        server="desktop-commander",
        calls=(
            ("write_file", {"path": "{folder}/b.txt", "content": "three"}),
            ("read_file", {"path": "{folder}/b.txt"}),
        ),
        check=lambda folder, done: (folder / "b.txt").read_text() == "three" and said(done, "three"),
    ),
)


def ready(server: str, given: dict[str, str]) -> ServerSpec:
    """A server of the catalogue, installed. Skips where it cannot be."""
    entry = CATALOGUE[server]
    try:
        install(entry)
    except (ToolServerError, UnsupportedError, OSError) as error:
        pytest.skip(f"{server}: {error}")
    return spec_of(server, server_table(entry, given), server, dict.fromkeys(entry.needs, "x"))


def done_by(spec: ServerSpec, calls: list[tuple[str, dict[str, Any]]]) -> Transcript:
    """What a model that makes these calls, one after another, has done."""
    answers = [hermes(f"{spec.name}__{name}", **given) for name, given in calls]
    model, _ = scripted(*answers, "Done.", context=1 << 19)

    async def go() -> Transcript:
        async with boxed([spec], Person("session"), Limits()) as box:
            assert box.troubles == {}
            return await Agent(model, box, MANY).run("Do it.")

    done = asyncio.run(go())
    assert model.held and model.loose == (), "every tool's schema is followed"
    return done


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.server)
def test_a_task_is_done_with_a_real_server(task: Task, tmp_path: Path) -> None:
    def here(value: Any) -> Any:
        return json.loads(json.dumps(value).replace("{folder}", json.dumps(str(tmp_path))[1:-1]))

    if task.server == "git":
        if shutil.which("git") is None:
            pytest.skip("no git here")
        make = [["init", "-q"], ["config", "user.name", "t"], ["config", "user.email", "t@example.org"]]
        (tmp_path / "repo").mkdir()
        for words in make:
            subprocess.run(["git", "-C", str(tmp_path / "repo"), *words], check=True)
        (tmp_path / "repo" / "a.txt").write_text("one")
    calls = [(name, here(given)) for name, given in task.calls]
    done = done_by(ready(task.server, here(task.settings)), calls)
    assert done.answer == "Done."
    assert [(step.tool.split("__", 1)[1], step.arguments) for step in done.steps] == calls
    assert task.check(tmp_path, done), [step.text for step in done.steps]


def test_a_page_on_this_machine_is_fetched() -> None:
    spec = ready("fetch", {})
    spec = ServerSpec(name="fetch", command=spec.command, args=("--ignore-robots-txt", "--allow-private-ips"))

    async def page(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = [(b"content-type", b"text/html")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"<h1>Tea</h1><p>It is green.</p>"})

    async def go() -> Transcript:
        async with served(page) as url, boxed([spec], Person("session"), Limits()) as box:
            model, _ = scripted(hermes("fetch__fetch", url=f"{url}/tea"), "Green.", context=1 << 17)
            return await Agent(model, box, MANY).run("What is tea?")

    done = asyncio.run(go())
    assert said(done, "It is green.") and done.answer == "Green."
