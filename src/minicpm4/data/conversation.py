"""A row of a file of chats as a conversation: its messages, and the columns beside them that count.

| column | what it is to the template |
| --- | --- |
| ``tools``, ``documents`` | as at inference; lists, or JSON text |
| ``chat_template_kwargs`` | a table of further arguments, or JSON text |
| ``enable_thinking`` | as in ``chat_template_kwargs`` |
| ``system`` | text: the first message, where the messages have none of the system |

Whatever else stands there is not read; whoever reads is told of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from minicpm4.config.strict import listed
from minicpm4.errors import ConfigError
from minicpm4.files import parse_json

__all__ = ["BESIDE", "Conversation", "LeftOut", "Unread", "conversation_of"]

_JSON = ("tools", "documents", "chat_template_kwargs")
BESIDE = (*_JSON, "enable_thinking", "system")
MAX_UNREAD = 256  # names of columns that are kept
_SHOWN = 8
_TAKEN = {"messages", "tools", "tokenizer", "template", "add_generation_prompt"}
_ARGUMENTS = "rename the column, or give what the chat template takes, as a table or as JSON text"


class Conversation(NamedTuple):
    """``messages`` as they stand at ``where``, the ``tools`` that they were offered, and further arguments of
    the template. What they are worth is not looked at here."""

    where: str
    messages: Any
    tools: Any = None
    options: Mapping[str, Any] = MappingProxyType({})


class LeftOut(Exception):
    """A conversation that nothing can be learnt from; the text is the reason."""


class Unread:
    """Names of columns that stand beside ``column`` and are not read, and ``where`` the first one is."""

    def __init__(self, column: str) -> None:
        self._read = {column, *BESIDE}
        self._names: dict[str, None] = {}
        self.where = ""

    def see(self, names: Mapping[str, Any] | list[str], where: str) -> None:
        """A row, or all rows of a file, have these."""
        for name in names:
            if name not in self._read and name not in self._names and len(self._names) < MAX_UNREAD:
                self.where = self.where or where
                self._names[name] = None

    def __str__(self) -> str:
        """A sentence on them; empty: there are none."""
        if not self._names:
            return ""
        return f"columns of the chats that are not read: {listed([*map(repr, self._names)], _SHOWN)}"


def conversation_of(table: Mapping[str, Any], column: str, where: str) -> Conversation:
    """What a row says, whose ``column`` is not null. Raises ConfigError, LeftOut where two columns say
    different things."""
    table = {name: table.get(name) for name in (*BESIDE, column)}
    messages = table[column]
    beside = {name: table[name] if name != column else None for name in BESIDE}
    if isinstance(messages, str):
        remedy = "give a list of messages, or one as JSON text"
        messages = parse_json(messages, f"{where}, {column}", ConfigError, remedy, constants=True)
    tools, documents, options = (_table(beside[name], f"{where}, {name}") for name in _JSON)
    if isinstance(tools, list):
        tools = [_table(tool, f"{where}, tools") for tool in tools]
    if not isinstance(options or {}, dict):
        raise ConfigError(f"{where}: 'chat_template_kwargs' is no table", _ARGUMENTS)
    options = {**(options or {})}
    if documents:
        options.setdefault("documents", documents)
    thinking, same = beside["enable_thinking"], options.get("enable_thinking")
    if thinking is not None and same is not None and thinking != same:
        raise LeftOut("its enable_thinking is not that of its chat_template_kwargs")
    if thinking is not None:
        options["enable_thinking"] = thinking
    if taken := sorted(_TAKEN & options.keys()):
        raise ConfigError(f"{where}: 'chat_template_kwargs' has {taken[0]!r}", _ARGUMENTS)
    return Conversation(where, _with_system(messages, beside["system"], where), tools or None, options)


def _with_system(messages: Any, system: Any, where: str) -> Any:
    """``messages`` after what the column ``system`` says."""
    if not isinstance(system, str | None):
        raise ConfigError(f"{where}: 'system' is a {type(system).__name__}, not a text", "rename the column")
    if not isinstance(messages, list) or not (system or "").strip():
        return messages
    own = [m for m in messages if isinstance(m, dict) and m.get("role") in ("system", "developer")]
    if not own:
        return [{"role": "system", "content": system}, *messages]
    if len(own) == 1 and own[0].get("content") == system:
        return messages
    raise LeftOut("it has a system message and another text in the column 'system'")


def _table(value: Any, where: str) -> Any:
    """``value``, or what it holds as JSON text."""
    if not isinstance(value, str):
        return value
    return parse_json(value, where, ConfigError, _ARGUMENTS, constants=True) if value.strip() else None
