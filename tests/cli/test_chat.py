"""`minicpm4 chat`: turns, commands, and what an interruption leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from minicpm4.errors import RequestError
from tests.cli.conftest import Result, Script

Run = Callable[..., Result]


def contents(script: Script, call: int) -> list[str]:
    return [message["content"] for message in script.calls[call].prompt]


def test_every_turn_sees_those_before(minicpm: Run, script: Script) -> None:
    script.answers = [["one"], ["two"]]
    result = minicpm("chat", "--system", "S", stdin="first\n\nsecond\n")
    assert result.code == 0
    assert result.out == "one\ntwo\n"
    assert contents(script, 1) == ["S", "first", "one", "second"]
    assert len(script.loads) == 1


def test_a_backslash_continues_a_message(minicpm: Run, script: Script) -> None:
    minicpm("chat", stdin="first\\\nsecond\n")
    assert contents(script, 0) == ["first\nsecond"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/reset", ["S", "again"]),
        ("/system T", ["T", "again"]),
        ("/system", ["again"]),
        ("/think off", ["S", "first", "one", "again"]),
        ("/help", ["S", "first", "one", "again"]),
    ],
)
def test_commands_change_the_conversation(
    minicpm: Run, script: Script, command: str, expected: list[str]
) -> None:
    script.answers = [["one"], ["two"]]
    assert minicpm("chat", "--system", "S", stdin=f"first\n{command}\nagain\n").code == 0
    assert contents(script, 1) == expected
    assert script.calls[1].think is (False if "think" in command else None)


def test_help_lists_every_command(minicpm: Run, script: Script) -> None:
    from minicpm4.cli.chat import ACTIONS

    result = minicpm("chat", stdin="/help\n")
    assert all(name in result.err for name in ACTIONS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rest", "there is no command /rest. did you mean '/reset'?"),
        ("/think perhaps", "use on, off or auto"),
        ("/save", "/save needs a file name"),
        ("/save /nowhere/at/all", "cannot write /nowhere/at/all"),
        ("/stats", "there is no complete answer yet"),
    ],
)
def test_wrong_commands_are_explained(minicpm: Run, script: Script, line: str, message: str) -> None:
    result = minicpm("chat", stdin=f"{line}\n")
    assert result.code == 2
    assert message in result.err


def test_exit_leaves_at_once(minicpm: Run, script: Script) -> None:
    assert minicpm("chat", stdin="/exit\nmore\n").code == 0
    assert script.calls == []


def test_save_writes_the_conversation(minicpm: Run, script: Script, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    minicpm("chat", stdin=f"first\n/save {file}\n")
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert [m["role"] for m in saved] == ["user", "assistant"]


def test_ctrl_c_stops_the_answer_and_keeps_the_session(minicpm: Run, script: Script) -> None:
    script.answers = [["half an ", KeyboardInterrupt(), ""], ["two"]]
    result = minicpm("chat", stdin="first\nsecond\n")
    assert result.code == 0
    assert contents(script, 1) == ["first", "half an ", "second"]
    assert "[stopped]" in result.err


def test_a_model_without_template_is_refused(minicpm: Run, script: Script) -> None:
    script.template = False
    result = minicpm("chat", stdin="x\n")
    assert result.code == 2
    assert "has no chat template. use: minicpm4 generate --raw" in result.err


def test_a_refused_turn_ends_a_script(minicpm: Run, script: Script) -> None:
    script.answers = [[RequestError("too long"), ""]]
    result = minicpm("chat", stdin="first\nsecond\n")
    assert (result.code, len(script.calls)) == (2, 1)
