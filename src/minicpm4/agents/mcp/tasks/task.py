"""The tasks as they stand in ``tasks.jsonl``: a line of JSON each.

* ``id``: its name; ``task``: what the user says;
* ``start``: what is there before: ``files``, ``folders``, ``tables`` (a database's SQL), ``commits`` of a
  repository and what is ``left`` uncommitted, ``graph`` (of the memory server), ``pages`` (served on this
  machine), ``before`` (calls that are made);
* ``calls``: those that solve it: tool as SERVER.TOOL, arguments;
* ``answer``: what the answer has to say, if anything; ``end``: what is to be true after, as ``state.wrong``
  reads it.

{folder} stands for the task's folder, {url} for where its pages are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minicpm4.config.strict import from_mapping, require
from minicpm4.errors import ConfigError
from minicpm4.files import lines_of, parse_json, read_text

__all__ = ["SERVERS", "Task", "placed", "read_tasks"]

FILE = Path(__file__).with_name("tasks.jsonl")
MAX_BYTES = 4 << 20
SERVERS = (
    *("calculator", "filesystem", "time", "simple-time", "sqlite", "git", "memory", "ppt", "docx"),
    *("code-executor", "desktop-commander", "fetch"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """See above."""

    id: str
    task: str
    calls: Sequence[Sequence[Any]]
    start: Mapping[str, Any] = field(default_factory=dict)
    answer: str = ""
    end: Sequence[Sequence[Any]] = ()

    @property
    def servers(self) -> tuple[str, ...]:
        """Whose tools it needs, in order."""
        names = [*(name for name, _ in self.calls), *(name for name, _ in self.start.get("before", ()))]
        return tuple(dict.fromkeys(name.split(".", 1)[0] for name in names))

    @property
    def group(self) -> str:
        """The server that it is counted under."""
        return self.id.rpartition("-")[0]

    @property
    def tools(self) -> tuple[str, ...]:
        """Which tools solve it, as SERVER.TOOL."""
        return tuple(dict.fromkeys(name for name, _ in self.calls))


def read_tasks(file: Path = FILE) -> list[Task]:
    """Raises ConfigError."""
    made: dict[str, Task] = {}
    for number, line in enumerate(lines_of(read_text(file, MAX_BYTES, ConfigError)), 1):
        if line.strip():
            where = f"{file}, line {number}"
            one = from_mapping(Task, parse_json(line, where, ConfigError), where)
            require(one.id not in made, f"{where}: {one.id} stands there twice")
            require(bool(one.answer or one.end), f"{where}: {one.id} says nothing of its end")
            made[one.id] = one
    return list(made.values())


def placed(value: Any, folder: Path, url: str) -> Any:
    """A JSON value with {folder} and {url} as they are."""
    text = json.dumps(value)
    for name, word in (("{folder}", str(folder)), ("{url}", url)):
        text = text.replace(name, json.dumps(word)[1:-1])
    return json.loads(text)
