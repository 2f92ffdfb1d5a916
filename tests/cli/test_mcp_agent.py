"""``minicpm4 mcp run`` and ``minicpm4 chat --mcp`` with a scripted model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from minicpm4.agents.mcp.agent import SYSTEM
from minicpm4.agents.mcp.transcript import UNKNOWN
from minicpm4.cli.conversation import TAKEN_BACK
from minicpm4.cli.keyboard import Lines
from tests.agents.servers import HERE
from tests.agents.test_agent import hermes
from tests.cli.conftest import Result, Script

Run = Callable[..., Result]
CALL = hermes("sums__add", a=2, b=3)
ROLES = ["system", "user", "assistant", "tool", "assistant"]
ALLOWED = ("--allow=sums", "--allow=sums.add")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINICPM4_HOME", str(tmp_path / "home"))
    server = {
        "command": sys.executable,
        "args": [str(HERE / "made_server.py"), "made", str(tmp_path / "log")],
    }
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"sums": server}}))
    return file


def test_a_task_is_done_and_each_call_asked_for(
    tmp_path: Path, minicpm: Run, script: Script, config: Path
) -> None:
    script.answers = [CALL, "It is 5."]
    saved = tmp_path / "done.json"
    words = ("mcp", "run", "2 + 3?", f"--config={config}", f"--save={saved}")
    done = minicpm(*words, stdin="y\ny\n", terminal=True)
    assert (done.code, done.out) == (0, "It is 5.\n")
    assert 'sums__add {"a": 2, "b": 3}' in done.err and "← 5" in done.err
    exported = minicpm("mcp", "export", str(saved))
    assert "**calls `sums__add`**" in exported.out
    line = minicpm("mcp", "export", str(saved), "--to=training", f"--output={tmp_path / 'x.jsonl'}")
    assert line.code == 0 and json.loads((tmp_path / "x.jsonl").read_text())["tools"]
    script.answers = ["Five."]
    on = minicpm("mcp", "run", "Again?", f"--config={config}", f"--resume={saved}", *ALLOWED)
    assert on.out == "Five.\n" and len(json.loads(saved.read_text())["messages"]) == 7


def test_a_task_that_is_not_done_is_an_error(minicpm: Run, script: Script, config: Path) -> None:
    script.answers = [CALL] * 9
    done = minicpm("mcp", "run", "2 + 3?", f"--config={config}", "--max-steps=2", *ALLOWED)
    assert done.code == 2 and "not done in 2 answers" in done.err


def test_a_dry_run_loads_and_starts_nothing(
    tmp_path: Path, minicpm: Run, script: Script, config: Path
) -> None:
    done = minicpm("mcp", "run", "2 + 3?", f"--config={config}", "--dry-run")
    assert done.code == 0 and "made_server.py" in done.out and "at most 12 times" in done.out
    assert script.loads == [] and not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run",), "there is no task"),
        (("run", "x", "--max-steps=0"), "outside 1 to 1000"),
        (("run", "x", "--temperature=-1"), "temperature"),
        (("run", "x", "--resume=/nowhere.json"), "cannot read /nowhere.json"),
        (("export", "/nowhere.json"), "cannot read /nowhere.json"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_loaded(
    minicpm: Run, script: Script, config: Path, words: tuple[str, ...], told: str
) -> None:
    more = (f"--config={config}",) if words[0] == "run" else ()
    done = minicpm("mcp", *words, *more)
    assert done.code == 2 and told in done.err and script.loads == []


def test_a_chat_has_tools(minicpm: Run, script: Script, config: Path) -> None:
    script.answers = ["Let me see. " + CALL, "It is 5.", "Fine."]
    lines = "2 + 3?\ny\nThanks.\n/tools\n"
    done = minicpm("chat", f"--mcp={config}", "--allow=sums", stdin=lines, terminal=True)
    assert done.code == 0
    assert done.out.replace("> ", "") == "Let me see.\nIt is 5.\nFine.\n"
    assert "May the tool sums.add be called?" in done.err and "← 5" in done.err
    assert done.err.rstrip().endswith("sums.add")


def test_a_chat_asks_once_more_for_what_was_meant_as_a_call(
    tmp_path: Path, minicpm: Run, script: Script, config: Path
) -> None:
    meant = '{{"name": "sums__add", "arguments": {"a": 2, "b": 3}}}'
    script.answers = [meant, CALL, "It is 5."]
    saved = tmp_path / "talk.json"
    done = minicpm("chat", f"--mcp={config}", *ALLOWED, stdin=f"2 + 3?\n/save {saved}\n")
    assert (done.code, done.out) == (0, f"{meant}\nIt is 5.\n")
    assert "asked for once more" in done.err and "→ sums__add" in done.err
    calls = [one.params.calls for one in script.calls]
    assert [one is not None and one.forced for one in calls] == [False, True, False]
    assert [one["role"] for one in json.loads(saved.read_text())] == ROLES


def test_a_chat_keeps_what_its_tools_said(tmp_path: Path, minicpm: Run, script: Script, config: Path) -> None:
    script.answers = [CALL, "5.", "Still 5."]
    saved = tmp_path / "talk.json"
    lines = f"2 + 3?\nAnd now?\n/save {saved}\n/forget 1\n"
    done = minicpm("chat", f"--mcp={config}", *ALLOWED, stdin=lines)
    assert done.code == 0
    roles = [one["role"] for one in json.loads(saved.read_text())]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user", "assistant"]
    assert "left out 1 of 2 questions" in done.err


def test_settings_of_a_chat_with_tools_count(minicpm: Run, script: Script, config: Path) -> None:
    script.answers = ["One.", "Two and more."]
    done = minicpm("chat", f"--mcp={config}", *ALLOWED, stdin="First\n/set max_tokens 3\nSecond\n")
    assert done.code == 0 and done.out == "One.\nTwo\n"
    assert [one.params.max_tokens for one in script.calls][-1] == 3
    assert "cut after" in done.err


@pytest.mark.parametrize("option", ["--continue", "/load"])
@pytest.mark.parametrize("system", [None, "Be brief.", SYSTEM])
def test_a_chat_that_is_gone_on_with_knows_what_results_are(
    tmp_path: Path,
    minicpm: Run,
    script: Script,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    system: str | None,
) -> None:
    monkeypatch.setenv("MINICPM4_CHAT", str(tmp_path))
    said = [] if system is None else [{"role": "system", "content": system}]
    said += [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello!"}]
    file, saved = tmp_path / "last.json", tmp_path / "saved.json"
    file.write_text(json.dumps({"model": "m", "messages": said}))
    words, lines = (("--continue",), "") if option == "--continue" else ((), f"/load {file}\n")
    done = minicpm("chat", f"--mcp={config}", *ALLOWED, *words, stdin=f"{lines}/save {saved}\n")
    assert done.code == 0, done.err
    found = json.loads(saved.read_text())
    assert [one["role"] for one in found] == ["system", "user", "assistant"]
    assert found[0]["content"].count(SYSTEM) == 1 and (system or "") in found[0]["content"]


def test_another_system_message_leaves_what_results_are(
    tmp_path: Path, minicpm: Run, script: Script, config: Path
) -> None:
    saved = tmp_path / "saved.json"
    lines = f"Hello.\n/system Be brief.\n/reset\nHello.\n/save {saved}\n"
    done = minicpm("chat", f"--mcp={config}", *ALLOWED, "--system=Be kind.", stdin=lines)
    assert done.code == 0 and json.loads(saved.read_text())[0]["content"] == f"{SYSTEM}\n\nBe brief."


def test_what_tools_have_done_outlives_ctrl_c(
    tmp_path: Path, minicpm: Run, script: Script, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter(["y"])

    def typed(self: Lines, question: str) -> str:
        for answer in said:
            return answer
        raise KeyboardInterrupt

    monkeypatch.setattr(Lines, "typed", typed)
    script.answers = [CALL + hermes("sums__add", a=4, b=5), "Fine."]
    saved = tmp_path / "talk.json"
    lines = f"2 + 3, 4 + 5?\nWhat was it?\n/save {saved}\n"
    done = minicpm("chat", f"--mcp={config}", "--allow=sums", stdin=lines, terminal=True)
    assert done.code == 0 and "[stopped]" in done.err and TAKEN_BACK not in done.err
    found = json.loads(saved.read_text())
    roles = ["system", "user", "assistant", "tool", "tool", "assistant", "user", "assistant"]
    assert [one["role"] for one in found] == roles
    assert "5" in found[3]["content"] and found[4]["content"] == UNKNOWN


def test_what_was_dropped_of_a_chat_is_no_answer(
    tmp_path: Path, minicpm: Run, script: Script, config: Path
) -> None:
    """The conversation is shorter than before the call, since the oldest is left out after it."""
    script.context = len(SYSTEM) + 720
    script.answers = ["x" * 300, CALL, [KeyboardInterrupt()], "Fine."]
    saved = tmp_path / "talk.json"
    lines = f"/set drop_oldest on\n/set max_tokens 300\nFirst\n2 + 3?\n/save {saved}\n"
    done = minicpm("chat", f"--mcp={config}", *ALLOWED, stdin=lines)
    assert done.code == 0 and "left out 1 of 1" in done.err and TAKEN_BACK not in done.err, done.err
    assert [one["role"] for one in json.loads(saved.read_text())] == ROLES


def test_a_result_for_which_there_is_no_room_stays(
    tmp_path: Path, minicpm: Run, script: Script, config: Path
) -> None:
    script.context, script.answers = len(SYSTEM) + 140, [CALL, "Fine."]
    saved = tmp_path / "talk.json"
    lines = f"2 + 3?\n/save {saved}\n"
    done = minicpm("chat", f"--mcp={config}", "--allow=sums", "--allow=sums.add", stdin=lines, terminal=True)
    assert "it was not sent" in done.err
    assert [one["role"] for one in json.loads(saved.read_text())] == ROLES


def test_tools_of_a_chat_without_servers_are_told_of(minicpm: Run, script: Script) -> None:
    assert "start with --mcp" in minicpm("chat", stdin="/tools\n").err
    script.loads.clear()
    refused = minicpm("chat", "--allow=x")
    assert refused.code == 2 and "--mcp" in refused.err and script.loads == []
    missing = minicpm("chat", "--mcp=/nowhere.json")
    assert missing.code == 2 and "/nowhere.json" in missing.err and script.loads == []
