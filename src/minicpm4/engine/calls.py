"""Calls of tools that an answer is held to."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minicpm4.config.strict import require, shown
from minicpm4.engine.schemas import checked_schema
from minicpm4.errors import ConfigError, ToolSchemaError, UnsupportedError
from minicpm4.text.messages import MAX_TOOLS

__all__ = ["ANY", "UNHELD", "Calls", "looser"]

ANY: dict[str, Any] = {"type": "object"}
UNHELD = (ToolSchemaError, ConfigError, UnsupportedError)
"""What is raised where calls cannot be held: by their schemas, a bound, or for want of a package."""
MAX_CALL_CHARS = 1 << 20  # of all schemas together, as JSON


@dataclass(frozen=True, kw_only=True, slots=True)
class Calls:
    """How the calls in an answer are written: in the model's own format, found from its chat template
    (``text/call_formats``), valid by the schemas of ``tools`` (functions as chat templates take them).

    ``forced``: the answer is calls and nothing else, behind reasoning. Else the model calls when it likes:
    from the mark that opens a call (a model without one: from the name of a tool) to its end it is held, and
    free again behind it. ``several``: whether more calls may follow the first, where the format has several;
    else the answer ends with it. ``names``: the tools that may be called, if not all. ``loose``: those whose
    arguments are any JSON, as their schemas cannot be followed.

    Raises ConfigError.
    """

    tools: Sequence[Mapping[str, Any]]
    forced: bool = False
    several: bool = True
    names: Collection[str] | None = None
    loose: Collection[str] = ()
    schemas: Mapping[str, Mapping[str, Any]] = field(init=False, repr=False, compare=False)
    """The schemas of the tools that may be called, by name."""
    key: str = field(init=False, repr=False)
    """What tells these from others."""

    def __post_init__(self) -> None:
        require(
            isinstance(self.tools, Sequence) and 0 < len(self.tools) <= MAX_TOOLS,
            f"calls.tools = {shown(self.tools)} is not a list of 1 to {MAX_TOOLS} tools",
        )
        from minicpm4.text.toolcalls import schemas_of  # templates and tokenizers, which few parameters need

        known = schemas_of(self.tools)
        wanted = set(known) if self.names is None else set(self.names)
        unknown = sorted(wanted - known.keys())
        require(not unknown, f"calls.names has {unknown[:1]}, the tools are {sorted(known)}")
        schemas = {
            name: checked_schema(f"the schema of tool {name!r}", schema)
            for name, schema in known.items()
            if name in wanted
        }
        require(bool(schemas), "calls.tools name no function", 'give {"type": "function", "function": …}')
        text = json.dumps(schemas)
        require(
            len(text) <= MAX_CALL_CHARS,
            f"the schemas of calls.tools have {len(text):,} characters, the limit is {MAX_CALL_CHARS:,}",
        )
        object.__setattr__(self, "schemas", schemas)
        rest = [self.forced, self.several, sorted(self.loose)]
        object.__setattr__(self, "key", json.dumps(rest) + text)

    def schema(self, name: str) -> Mapping[str, Any]:
        """What the arguments of a tool are held to."""
        return ANY if name in self.loose else self.schemas[name]


def looser(error: BaseException | None, loose: Collection[str]) -> tuple[str, ...]:
    """The tools to be ``loose`` after ``error``, which came of those that were; none: nothing can be held."""
    return error.tools if isinstance(error, ToolSchemaError) and not loose else ()
