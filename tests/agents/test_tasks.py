"""The hundred tasks: what they say, how their ends are looked at; and (`make test-mcp`) that each is solved
by its own calls, and by a scripted model, with the real servers."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from minicpm4.agents.mcp.catalogue import CATALOGUE
from minicpm4.agents.mcp.data.talks import call_message
from minicpm4.agents.mcp.evaluate import Mark
from minicpm4.agents.mcp.install import install
from minicpm4.agents.mcp.tasks.running import COMPANIONS, Outcome, Runner, tools_of
from minicpm4.agents.mcp.tasks.state import set_up, wrong
from minicpm4.agents.mcp.tasks.task import SERVERS, Task, placed, read_tasks
from minicpm4.agents.mcp.toolbox import Toolbox
from minicpm4.agents.mcp.tools import Tool
from minicpm4.cli import mcp_tasks
from minicpm4.errors import ConfigError, ToolServerError, UnsupportedError
from tests.agents.servers import Person, boxed, made
from tests.agents.test_agent import hermes, scripted
from tests.agents.test_evaluate import ADD
from tests.cli.conftest import Result, Script, minicpm, script

Run = Callable[..., Result]
__all__ = ["minicpm", "script"]
TASKS = read_tasks()


def test_there_are_a_hundred_over_twelve_servers() -> None:
    assert len(TASKS) == 100 and {name for one in TASKS for name in one.servers} == {*SERVERS}
    assert min(Counter(one.group for one in TASKS).values()) >= 5
    assert sum(len({name.split(".")[0] for name, _ in one.calls}) > 1 for one in TASKS) >= 10


@pytest.mark.parametrize("task", TASKS, ids=lambda one: one.id)
def test_a_task_is_not_done_before_it_is_begun(task: Task, tmp_path: Path) -> None:
    if "commits" in task.start and shutil.which("git") is None:
        pytest.skip("no git here")
    folder = tmp_path / "task"
    set_up(folder, task.start)
    if not task.start.get("before"):  # what calls make first is not there
        assert wrong(folder, placed(list(task.end), folder, "u"), "", task.answer)
    assert "{" not in placed(task.task, folder, "u").replace('[["', ""), "every place has a name"
    assert task.answer not in task.task or task.end or not task.answer, "the answer is not given away"


OFFICE = "<w:p><w:r><w:t>Tea </w:t></w:r><w:r><w:t>&amp; cake</w:t></w:r></w:p><w:p>Later</w:p>"


@pytest.mark.parametrize(
    ("end", "fine"),
    [
        (["file", "a.txt", "one"], True),
        (["file", "a.txt", "on"], False),
        (["file", "b.txt", "one"], False),
        (["file has", "a.txt", "on"], True),
        (["file lacks", "a.txt", "two"], True),
        (["file lacks", "a.txt", "one"], False),
        (["gone", "b.txt"], True),
        (["gone", "a.txt"], False),
        (["folder", "home"], True),
        (["folder", "a.txt"], False),
        (["rows", "SELECT n FROM t", [[1]]], True),
        (["rows", "SELECT n FROM t", [[2]]], False),
        (["rows", "SELECT nothing", []], False),
        (["git", "log --format=%s", "First"], True),
        (["git", "log --format=%s", "Second"], False),
        (["remembers", "Ann"], True),
        (["forgot", "Bob"], True),
        (["forgot", "Ann"], False),
        (["office has", "n.docx", "Tea & cake", "Later"], True),
        (["office has", "n.docx", "Later", "Tea"], False),
        (["office lacks", "n.docx", "Coffee"], True),
        (["office has", "a.txt", "x"], False),
        (["slides", "n.docx", 0], True),
    ],
)
def test_ends_are_looked_at(tmp_path: Path, end: list[Any], fine: bool) -> None:
    folder = tmp_path / "task"
    start = {
        "files": {"a.txt": "one\n"},
        "tables": "CREATE TABLE t (n); INSERT INTO t VALUES (1);",
        "commits": [["First", {"x": "y"}]],
        "graph": [{"type": "entity", "name": "Ann"}],
    }
    if shutil.which("git") is None:
        pytest.skip("no git here")
    set_up(folder, start)
    with zipfile.ZipFile(folder / "n.docx", "w") as archive:
        archive.writestr("word/document.xml", OFFICE)
    assert (wrong(folder, [end], "", "") == []) is fine


def office(*names: str, method: int = zipfile.ZIP_DEFLATED, says: str = OFFICE) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name in names:
            archive.writestr(name, says)
    return made.getvalue()


WHOLE = office("word/document.xml")


DAMAGED = (
    office("other.xml"),
    office("word/document.xml", says=f"Nobody said this &#{'9' * 5000};"),  # more digits than int() takes
    office("ppt/slides/slide1.xml", says="<" * 500_000),  # whose ends are looked for once
    office("ppt/slides/slide" + "9" * 5000 + ".xml"),
    WHOLE.replace(b"\x14\x00\x00\x00\x08", b"\x14\x00\x01\x00\x08"),  # said to be encrypted
    *(WHOLE.replace(b"\x00\x00\x08\x00", bytes([0, 0, kind, 0])) for kind in (1, 9, 12, 14, 99)),
    *(WHOLE[:i] + bytes([WHOLE[i] ^ bit]) + WHOLE[i + 1 :] for i in range(len(WHOLE)) for bit in (1, 128)),
    *(WHOLE[:i] for i in range(0, len(WHOLE), 7)),
)


_COUNTS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r)"
_ENDLESS = {
    "rows": f"CREATE VIEW t AS {_COUNTS} SELECT n FROM r",
    "none": f"CREATE VIEW t AS {_COUNTS} SELECT n FROM r WHERE n < 0",
    "value": "CREATE VIEW t AS SELECT zeroblob(900000000) AS n",
    "pattern": f"CREATE VIEW t AS SELECT 1 AS n WHERE printf('%.*c', 5000, 'a') LIKE '{'%a' * 12}%b'",
}


@pytest.mark.parametrize("name", _ENDLESS)
def test_a_view_without_end_in_a_table_s_place_ends(tmp_path: Path, name: str) -> None:
    """In a process of its own: SQLite lets no signal through before it has ended."""
    set_up(tmp_path / "task", {"tables": _ENDLESS[name]})
    code = (
        "import sys; from pathlib import Path; from minicpm4.agents.mcp.tasks.state import wrong; "
        "print(len(wrong(Path(sys.argv[1]), [['rows', 'SELECT n FROM t', [[1]]]], '', '')))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "task")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "1\n"


def test_documents_that_a_model_has_damaged_end_nothing(tmp_path: Path) -> None:
    for content in DAMAGED:
        (tmp_path / "n.docx").write_bytes(content)
        for end in (["office has", "n.docx", "Nobody said this"], ["slides", "n.docx", 7]):
            assert len(wrong(tmp_path, [end], "", "")) == 1


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_repositories_are_made_whatever_the_users_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "hooks").mkdir(parents=True)
    (home / "hooks" / "commit-msg").write_text("#!/bin/sh\nexit 1\n")
    (home / "hooks" / "commit-msg").chmod(0o755)
    settings = (
        f"[core]\n\thooksPath = {home / 'hooks'}\n[commit]\n\tgpgSign = true\n[log]\n\tdecorate = full\n"
    )
    (home / ".gitconfig").write_text(settings)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / ".gitconfig"))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody")
    folder = tmp_path / "task"
    set_up(folder, {"commits": [["First", {"x": "y"}]]})
    assert wrong(folder, [["git", "log --format=%s%d%an", "First (HEAD -> main)Ann"]], "", "") == []
    with pytest.raises(UnsupportedError, match="git commit -q -m Empty failed"):
        set_up(folder, {"commits": [["Empty", {}]]})


def test_an_unknown_end_or_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing checks"):
        wrong(tmp_path, [["fine"]], "", "")
    with pytest.raises(ConfigError, match="start has"):
        set_up(tmp_path / "x", {"file": {}})


def test_the_command_lists_and_refuses(minicpm: Run, script: Script) -> None:
    listed = minicpm("mcp", "tasks", "sqlite", "fetch-2", "--list")
    names = [line.split()[0] for line in listed.out.splitlines() if line[:6] in ("sqlite", "fetch-")]
    assert listed.code == 0 and len(names) == 13 and names[:3] == ["sqlite-1", "sqlite-2", "fetch-2"]
    wrong_name = minicpm("mcp", "tasks", "sqlit")
    assert wrong_name.code == 2 and "did you mean 'sqlite'?" in wrong_name.err


def ready(task: Task) -> None:
    """The servers of a task, installed. Skips where one cannot be."""
    for name in dict.fromkeys([*COMPANIONS, *task.servers]):
        try:
            install(CATALOGUE[name])
        except (ToolServerError, UnsupportedError, OSError) as error:
            pytest.skip(f"{name}: {error}")


@cache
def tools_once(names: tuple[str, ...], folder: Path) -> list[Tool]:
    return asyncio.run(tools_of(names, folder, Person("session").ask, ()))


@pytest.mark.servers
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task", TASKS, ids=lambda one: one.id)
def test_a_task_is_solved_by_a_scripted_model(
    task: Task, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With the right calls all scores are full, by grammar."""
    ready(task)
    folder = tmp_path / "task"
    names = tuple(sorted({*COMPANIONS, *task.servers}))
    pool = tools_once(names, tmp_path_factory.getbasetemp() / "list")

    async def go() -> Outcome:
        runner = Runner(folder=folder, pool=pool, ask=Person("session").ask)
        gold = await runner.gold(task)
        made = [one["function"] for message in gold[0] for one in message.get("tool_calls", ())]
        if task.answer:
            found = " ".join(one["content"] for one in gold[0] if one["role"] == "tool")
            assert not wrong(folder, [], found, task.answer), f"no result says {task.answer}: {found}"
        calls = [hermes(one["name"], **one["arguments"]) for one in made]
        model, _ = scripted(*calls, *calls, task.answer or "Done.", context=1 << 17)
        return await runner.score(model, task, gold, held=True)

    done = asyncio.run(go())
    assert done.wrong == [] and done.ended == "answered" and done.unfit == 0, done
    assert all(mark.values for mark in done.marks) and len(done.marks) == done.made == len(task.calls)


@pytest.mark.servers
@pytest.mark.timeout(1800)
def test_a_model_that_does_nothing_solves_nothing(tmp_path: Path) -> None:
    task = next(one for one in TASKS if one.id == "filesystem-11")
    ready(task)
    ask = Person("session").ask

    async def go() -> Outcome:
        pool = await tools_of(COMPANIONS, tmp_path / "list", ask, ())
        runner = Runner(folder=tmp_path / "task", pool=pool, ask=ask)
        gold = await runner.gold(task)
        model, _ = scripted("I cannot do this.", context=1 << 17)
        return await runner.score(model, task, gold, held=False)

    done = asyncio.run(go())
    assert len(done.wrong) == 2 and done.made == 0 and not any(mark.function for mark in done.marks)


def test_what_outgrows_the_context_is_an_end_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def world(runner: Runner, task: Task) -> AsyncIterator[tuple[Toolbox, str]]:
        async with boxed([made("made")], Person("session")) as box:
            yield box, "u"

    monkeypatch.setattr(Runner, "_world", world)
    monkeypatch.setattr(Runner, "_offered", lambda runner, box, task: list(box.tools.values()))
    task = Task(id="x-1", task="? " * 20_000, calls=[], end=[["gone", "x"]])
    messages = [{"role": "user", "content": task.task}, call_message([("c", "sums__add", {"a": 1})])]
    runner = Runner(folder=tmp_path, pool=(), ask=Person("session").ask)
    done = asyncio.run(runner.score(scripted("unasked")[0], task, (messages, [ADD]), held=True))
    assert done.ended == "refused" and done.refused and done.wrong == [] and done.made == 0
    assert [bool(mark.refused) for mark in done.marks] == [True]


class Played:
    """A runner of which the second task fails; the third's agent is refused, and a step of it."""

    pool: tuple[Tool, ...] = ()

    def __init__(self) -> None:
        self.scored: list[tuple[str, bool]] = []

    async def gold(self, task: Task) -> tuple[list[dict[str, Any]], list[Any]]:
        if task.id == "calculator-2":
            raise ToolServerError("it did not start")
        return [{"role": "tool"}], []

    async def score(self, model: Any, task: Task, gold: Any, *, held: bool) -> Outcome:
        self.scored.append((task.id, held))
        given = ("f", {"a": 1}) if held else None
        refused = "too long" if task.id == "calculator-3" else ""
        marks = [Mark(server="calculator", wanted=("f", {"a": 1}), given=given)]
        marks.append(Mark(server="calculator", wanted=("f", {}), given=None, refused="too long a step"))
        return Outcome(
            marks=marks,
            wrong=[] if held else ["x"],
            ended="refused" if refused else "answered",
            answer="",
            made=2,
            unfit=0,
            seconds=1.0,
            refused=refused,
        )


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    monkeypatch.setenv("MINICPM4_HOME", str(tmp_path / "home"))
    made = Played()
    monkeypatch.setattr(mcp_tasks, "_runner", lambda wanted, *_: (made, wanted))
    return made


ONE_TO_THREE = ("mcp", "tasks", "calculator-1", "calculator-2", "calculator-3")


def test_scores_are_kept_and_a_server_that_fails_leaves_the_others(
    tmp_path: Path, minicpm: Run, script: Script, played: Played
) -> None:
    words = (*ONE_TO_THREE, f"--keep={tmp_path / 'k'}")
    done = minicpm(*words)
    assert done.code == 0 and "calculator-2 is left out: it did not start" in done.err
    rows = [line.split() for line in done.out.splitlines() if line.startswith("all tasks")]
    assert [row[2:] for row in rows] == [
        ["held", "2", "100.0", "2", "100.0", "100.0", "100.0", "0", "of", "4"],
        ["free", "2", "0.0", "2", "0.0", "0.0", "0.0", "0", "of", "4"],
    ], "what was refused is in no share"
    assert "2 steps (held) could not be asked for to their end: too long a step" in done.err
    assert "1 tasks (free) could not be asked for to their end: too long" in done.err
    assert played.scored == [(f"calculator-{i}", held) for i in (1, 3) for held in (True, False)]
    again = minicpm(*words)
    assert again.out == done.out and len(played.scored) == 4, "what was scored is found again"
    for more in ("--seed=3", "--attention=dense", "--offer=11", "--model=other", "--endpoint=http://h/v1"):
        other = minicpm(*words, more)
        assert other.code == 2 and "was begun with" in other.err, more


def test_time_that_is_up_is_told(minicpm: Run, script: Script, played: Played) -> None:
    late = minicpm("mcp", "tasks", "calculator-4", "--minutes=1e-9")
    assert late.code == 0 and "1 tasks are left; with --keep it could go on" in late.err
    none = minicpm("mcp", "tasks", "calculator-4", "--minutes=0")
    assert none.code == 2 and "--minutes 0.0 is no time" in none.err


def test_right_calls_are_written_without_what_fails(
    tmp_path: Path, minicpm: Run, script: Script, played: Played
) -> None:
    done = minicpm(*ONE_TO_THREE, f"--gold={tmp_path / 'g.jsonl'}")
    assert done.code == 0 and "calculator-2 is left out: it did not start" in done.err, done.err
    assert len((tmp_path / "g.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "g.tools.json").read_text()) == []
    assert minicpm("mcp", "tasks", "calculator-2", f"--gold={tmp_path / 'h.jsonl'}").code == 2
    assert not (tmp_path / "h.jsonl").exists() and script.loads == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--gold=/nowhere/g.jsonl",), "cannot write --gold /nowhere/g.jsonl"),
        (("--gold=g.jsonl", "--minutes=5"), "--minutes says nothing to --gold"),
        (("--gold=g.jsonl", "--model=x"), "--model says nothing to --gold"),
        (("--calls=both", "--endpoint=http://h/v1"), "--calls both is for models that are loaded here"),
        (("--calls=bot",), "did you mean 'both'?"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(
    minicpm: Run, script: Script, played: Played, words: tuple[str, ...], told: str
) -> None:
    done = minicpm("mcp", "tasks", *words)
    assert done.code == 2 and told in done.err and played.scored == script.loads == []


def test_with_an_endpoint_tasks_are_done_once(minicpm: Run, script: Script, played: Played) -> None:
    assert minicpm("mcp", "tasks", "calculator-1", "--endpoint=http://h/v1").code == 0
    assert played.scored == [("calculator-1", False)]
