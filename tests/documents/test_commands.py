"""Every command that README and the guides show is run, or is listed with the reason why it is not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from minicpm4.agents.mcp.config import read_config
from tests.cli.conftest import Result, Script, minicpm, script
from tests.documents.pages import (
    MODEL,
    NOT_RUN,
    PAGES,
    QUICK,
    SERVED,
    SMALL,
    Way,
    blocks,
    shown,
)
from tests.documents.world import make_models, make_world

Run = Callable[..., Result]
__all__ = ["minicpm", "script"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    for variable, folder in (("MINICPM4_HOME", "home"), ("MINICPM4_CHAT", "chats")):
        monkeypatch.setenv(variable, str(tmp_path / folder))
    return tmp_path


def test_each_command_is_run_or_not_for_a_reason() -> None:
    known = [*QUICK, *MODEL, *SMALL, *SERVED, *(one for some in NOT_RUN.values() for one in some)]
    assert len(known) == len({*known}), "a command is in two of the lists"
    assert {*known} == shown()


def test_no_command_hides_in_a_block_of_another_kind() -> None:
    for page in PAGES:
        for block in blocks(page, ""):
            assert not re.search(r"^(\.venv/bin/)?minicpm4 [a-z]", block, re.MULTILINE), page.name


def does(minicpm: Run, command: str, way: Way) -> Result:
    """Run one in this process, and look for what it has to say."""
    for ours, theirs in way.put:
        command = command.replace(ours, theirs)
    stdin = way.stdin
    if command.startswith("cat "):
        before, _, command = command.partition(" | ")
        stdin = Path(before.removeprefix("cat ")).read_text()
    name, *words = shlex.split(command)
    assert name == "minicpm4", command
    done = minicpm(*words, stdin=stdin, terminal=way.terminal)
    assert done.code == 0 and way.told in done.out + done.err, (command, done)
    return done


def test_quick_ones(world: Path, minicpm: Run, script: Script) -> None:
    for command, way in QUICK.items():
        script.answers = list(way.answers)
        does(minicpm, command, way)


def test_those_of_a_small_model(world: Path, minicpm: Run) -> None:
    make_models(world)
    for command, way in SMALL.items():
        does(minicpm, command, way)


@pytest.mark.slow
def test_those_of_the_embedded_model(world: Path, minicpm: Run) -> None:
    for command, way in MODEL.items():
        assert does(minicpm, command, way).out.strip(), command


def test_the_table_of_servers_is_read(world: Path) -> None:
    for block in blocks(next(page for page in PAGES if page.name == "mcp.md"), "json"):
        (world / "theirs.json").write_text(block)
        found = read_config(world / "theirs.json", {"HOME": "/home/x", "TOKEN": "t"})
        assert {"calculator", "files", "far"} == {*found.servers}
