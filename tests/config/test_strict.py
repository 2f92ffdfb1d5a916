"""Tables of settings from outside: what lacks a key that has no default is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minicpm4.agents.mcp.tasks.task import read_tasks
from minicpm4.config.strict import counted, from_mapping, from_table
from minicpm4.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One field without a default."""

    name: str
    count: int = 1


@pytest.mark.parametrize("read", [from_mapping, from_table])
def test_a_key_that_is_needed_and_is_not_there(read: Callable[[Any, Any, str], Settings]) -> None:
    assert read(Settings, {"name": "a"}, "it") == Settings(name="a")
    with pytest.raises(ConfigError, match=r"^it lacks name$"):
        read(Settings, {"count": 2}, "it")


def test_a_task_that_lacks_a_key_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(ConfigError, match=r"t\.jsonl.* lacks [a-z]+"):
        read_tasks(tmp_path / "t.jsonl")


def test_things_are_counted_as_they_are_said() -> None:
    assert [counted(n, "text") for n in (0, 1, 2, 1000)] == ["0 texts", "1 text", "2 texts", "1,000 texts"]
    assert [counted(n, "entry", "entries") for n in (0, 1, 2)] == ["0 entries", "1 entry", "2 entries"]
