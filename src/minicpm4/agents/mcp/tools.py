"""Tools of servers as a person sees them, as a model sees them, and what tells one from another."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minicpm4.agents.mcp.config import ServerSpec
from minicpm4.agents.mcp.hidden import escaped, has_hidden, looks, visible
from minicpm4.agents.mcp.limits import Limits
from minicpm4.engine.schemas import checked_schema
from minicpm4.errors import ConfigError
from minicpm4.files import json_text

__all__ = [
    "Tool",
    "changed_texts",
    "fingerprint",
    "likenesses",
    "named",
    "read_tool",
    "shown_name",
    "texts_in",
]

MAX_NAME = 64  # of a function, in the APIs of others
_HINTS = ("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A tool as its server tells of it. ``schema``: of its arguments; ``hints``: what the server says that it
    does, which nothing here believes. ``called``: what the model calls it, among all servers' tools."""

    server: str
    name: str
    title: str = ""
    description: str = ""
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    hints: Mapping[str, Any] = field(default_factory=dict)
    called: str = ""

    @property
    def function(self) -> dict[str, Any]:
        """What a model is offered: without anything that a person does not see."""
        told = visible(self.description or self.title)
        return {
            "type": "function",
            "function": {
                "name": self.called,
                "description": told,
                "parameters": changed_texts(self.schema, visible),
            },
        }

    @property
    def parts(self) -> dict[str, str]:
        """Digests of what an approval is bound to, beside the server: by what a person calls it."""
        return {
            "name": _digest(self.name),
            "description": _digest([self.title, self.description]),
            "schema": _digest(self.schema),
            "hints": _digest(self.hints),
        }

    @property
    def has_hidden(self) -> bool:
        """Whether it is described in characters that a person does not see."""
        return any(map(has_hidden, (self.name, self.title, self.description, *texts_in(self.schema))))


def fingerprint(spec: ServerSpec, parts: Mapping[str, str]) -> str:
    """A hash of what is run or reached, and of a tool's ``parts`` (none: of the server itself)."""
    return _digest([spec.identity, dict(parts)])


def read_tool(server: str, told: Any, limits: Limits) -> Tool:
    """A tool from what the SDK has read. Raises ConfigError: it cannot be offered, and why."""
    where = f"{server}: the tool {shown_name(told.name)}"
    if not told.name or len(told.name) > 200:
        raise ConfigError(f"{where} has a name of {len(told.name)} characters")
    description = told.description or ""
    if len(description) > limits.description_chars:
        raise ConfigError(f"{where} is described in {len(description):,} characters")
    schema = checked_schema(f"the schema of {where}", told.input_schema)
    size = len(json.dumps(schema))
    if size > limits.schema_chars:
        raise ConfigError(f"{where} has a schema of {size:,} characters")
    noted = told.annotations.model_dump(by_alias=True, exclude_none=True) if told.annotations else {}
    return Tool(
        server=server,
        name=told.name,
        title=(told.title or noted.get("title") or "")[:200],
        description=description,
        schema=schema,
        hints={key: noted[key] for key in _HINTS if key in noted},
    )


def named(tools: Sequence[Tool]) -> list[str]:
    """Names for tools of any servers: letters that every API takes, none twice, the same as long as the
    tools are."""
    plain = [re.sub(r"[^A-Za-z0-9_-]", "_", f"{tool.server}__{tool.name}") for tool in tools]
    plain = [name if re.match(r"[A-Za-z_]", name) else f"s{name}" for name in plain]
    made = []
    for name, tool in zip(plain, tools, strict=True):
        if len(name) > MAX_NAME or plain.count(name) > 1:
            name = f"{name[: MAX_NAME - 9]}_{_digest([tool.server, tool.name])[:8]}"
        made.append(name)
    return made


def shown_name(name: str) -> str:
    """A stranger's name, for a person."""
    return escaped(name if len(name) <= 80 else f"{name[:79]}…")


def likenesses(tools: Iterable[Tool]) -> dict[str, list[Tool]]:
    """By ``called``: tools of other servers whose names look the same."""
    by_looks: dict[str, list[Tool]] = {}
    for tool in tools:
        by_looks.setdefault(looks(tool.name), []).append(tool)
    found = {}
    for same in by_looks.values():
        for tool in same:
            others = [one for one in same if one.server != tool.server]
            if others:
                found[tool.called] = others
    return found


def _digest(value: Any) -> str:
    text = json_text(value, sort_keys=True) if not isinstance(value, str) else json.dumps(value)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def changed_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with each of its texts changed, names of its tables too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): changed_texts(one, change) for key, one in value.items()}
    return [changed_texts(one, change) for one in value] if isinstance(value, list) else value


def texts_in(value: Any) -> list[str]:
    """All texts in a JSON value, names of its tables too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key, one in value.items() for text in (key, *texts_in(one))]
    return [text for one in value for text in texts_in(one)] if isinstance(value, list) else []
