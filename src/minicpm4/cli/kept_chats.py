"""What ``minicpm4 chat`` keeps between starts: messages that were typed, and the last conversation.

Both are for their user alone: private files in the folder ``chat`` beside the downloads, or wherever
MINICPM4_CHAT says; "off" keeps nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm4.errors import ConfigError, RequestError
from minicpm4.files import json_text, parse_json, read_text, writing
from minicpm4.places import cache_folder
from minicpm4.text.messages import MAX_CHAT_CHARS, check_messages

MAX_LINES = 1000  # messages that arrow keys find again
MAX_LINE_CHARS = 1 << 16  # a longer one is not kept
VARIABLE = "MINICPM4_CHAT"


@dataclass(frozen=True, slots=True)
class KeptChats:
    """The folder of what is kept; None: nothing is."""

    folder: Path | None

    @classmethod
    def usual(cls) -> KeptChats:
        """Where the environment says."""
        return cls(cache_folder("chat", VARIABLE))

    def lines(self) -> list[str]:
        """What was typed, the oldest first. A damaged file is as none."""
        if self.folder is None or not (file := self.folder / "typed.json").exists():
            return []
        try:
            found = parse_json(read_text(file, MAX_LINES * MAX_LINE_CHARS * 4, ConfigError), "", ConfigError)
        except ConfigError:
            return []
        return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []

    def remember(self, line: str) -> None:
        """Keep a message for arrow keys. Raises OSError."""
        if self.folder is not None and len(line) <= MAX_LINE_CHARS:
            known = [one for one in self.lines() if one != line]
            self._write("typed.json", [*known, line][-MAX_LINES:])

    def save(self, model: str, messages: Sequence[dict[str, Any]]) -> None:
        """Keep a conversation for ``--continue``. Raises OSError."""
        self._write("last.json", {"model": model, "messages": list(messages)})

    def last(self) -> tuple[str, list[dict[str, Any]]]:
        """Model and messages of the last conversation. Raises ConfigError."""
        file = None if self.folder is None else self.folder / "last.json"
        if file is None or not file.exists():
            raise ConfigError("there is no conversation to go on with", "leave out --continue")
        model, messages = read_conversation(file)
        if model is None:
            raise ConfigError(f"{file} names no model", "leave out --continue")
        return model, messages

    def _write(self, name: str, value: Any) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with writing(self.folder / name, private=True) as out:
            out.write(json_text(value, ascii_only=False).encode("utf-8", "replace"))


def read_conversation(file: Path) -> tuple[str | None, list[dict[str, Any]]]:
    """Messages of a file that /save or ``KeptChats.save`` wrote, and the model where it names one. Raises
    ConfigError."""
    remedy = "give a file that /save wrote"
    found = parse_json(
        read_text(file, 4 * MAX_CHAT_CHARS, ConfigError, remedy), str(file), ConfigError, remedy
    )
    table = found if isinstance(found, dict) else {"messages": found}
    try:
        messages = check_messages(table.get("messages", ()))
    except RequestError as error:
        raise ConfigError(f"{file} holds no conversation: {error.condition}", remedy) from error
    model = table.get("model")
    return model if isinstance(model, str) else None, messages
