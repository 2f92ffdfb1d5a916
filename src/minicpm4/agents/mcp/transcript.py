"""What an agent did, in a file: written whole after each step, gone on from, and turned into text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minicpm4.agents.mcp.conversations import check_conversation
from minicpm4.agents.mcp.hidden import escaped
from minicpm4.config.strict import from_table, require
from minicpm4.errors import ConfigError
from minicpm4.files import finite, json_text, read_json, writing
from minicpm4.text.call_messages import result_message

__all__ = ["Step", "Transcript", "mend"]

MAX_BYTES = 64 << 20
VERSION = 1
UNKNOWN = "This call was interrupted: nobody knows whether it was carried out. Find out before you repeat it."


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One call: of which ``tool`` (by the model's name for it), and what it said. ``seconds``: it took."""

    tool: str
    arguments: Mapping[str, Any]
    text: str
    failed: bool = False
    denied: bool = False
    seconds: float = 0.0


@dataclass(kw_only=True, slots=True)
class Transcript:
    """``messages``: the conversation as the model sees it; ``tools``: what it was offered last; ``ended``: as
    Agent says, "" while it goes on."""

    model: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    ended: str = ""
    answer: str = ""

    def save(self, file: Path) -> None:
        """Write it whole, for the user alone, half characters as escapes. Raises OSError."""
        with writing(file, private=True) as out:
            table = finite({"version": VERSION, **asdict(self)})
            out.write(json_text(table, indent=1, ascii_only=False).encode("utf-8", "backslashreplace"))

    @classmethod
    def load(cls, file: Path) -> Transcript:
        """Raises ConfigError."""
        table = read_json(file, MAX_BYTES, ConfigError)
        require(table.pop("version", None) == VERSION, f"{file} is no transcript of version {VERSION}")
        lists = {name: table.pop(name, []) for name in ("messages", "tools", "steps")}
        for name, value in lists.items():
            fine = isinstance(value, list) and all(isinstance(one, dict) for one in value)
            require(fine, f"{file}: {name} is no list of tables")
        made = from_table(cls, table, str(file), any_text=True)
        made.messages, made.tools = lists["messages"], lists["tools"]
        made.steps = [
            from_table(Step, one, f"{file}: steps[{i}]", any_text=True)
            for i, one in enumerate(lists["steps"])
        ]
        check_conversation(made.messages, made.tools, str(file))
        mend(made.messages)
        return made

    def as_markdown(self) -> str:
        """For people."""
        parts = []
        for message in self.messages:
            role, content = message.get("role"), str(message.get("content") or "")
            if role == "tool":
                parts.append(f"**{_code(message.get('name'))} said**\n\n{_fence(content)}")
                continue
            if content.strip():
                parts.append(f"**{role}**\n\n{escaped(content)}")
            for call in message.get("tool_calls") or ():
                function = call["function"]
                given = json.dumps(function["arguments"], ensure_ascii=False)
                parts.append(f"**calls {_code(function['name'])}**\n\n{_fence(given)}")
        return "\n\n".join(parts) + "\n"

    def as_training(self) -> str:
        """A line of JSON with messages and tools, as ``minicpm4 train`` reads them."""
        table = finite({"messages": self.messages, "tools": self.tools})
        text = json_text(table, ascii_only=False) + "\n"
        return text.encode("utf-8", "backslashreplace").decode()  # half a character is an escape of JSON, too


def mend(messages: list[dict[str, Any]]) -> None:
    """Answer calls that were interrupted: that they may have been carried out, or not."""
    at = next((i for i in reversed(range(len(messages))) if messages[i].get("role") != "tool"), None)
    last = {} if at is None else messages[at]
    # Behind it alone: servers name calls call_0 in each answer anew.
    done = {one.get("tool_call_id") for one in messages[(at or 0) + 1 :]}
    for call in last.get("tool_calls") or ():
        if call["id"] not in done:
            messages.append(result_message(call["id"], str(call["function"]["name"]), UNKNOWN))


def _code(name: Any) -> str:
    return "`" + escaped(str(name)).replace("`", "'") + "`"


def _fence(text: str) -> str:
    ticks = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{ticks}\n{escaped(text)}\n{ticks}"
