"""What was allowed: for a session, or always, in a file that is written whole.

An approval is bound to a hash of what is run or reached, and of a tool's name, description, schema and hints.
Whatever of these changes, it is another tool, which nobody has allowed.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm4.agents.mcp.asking import Consent
from minicpm4.agents.mcp.config import ServerSpec
from minicpm4.agents.mcp.tools import Tool, fingerprint
from minicpm4.errors import ConfigError
from minicpm4.files import json_text, lock, read_json, writing
from minicpm4.places import cache_home

__all__ = ["Approvals", "Standing", "approvals_file"]

MAX_BYTES = 16 << 20
VERSION = 1


def approvals_file() -> Path:
    """Where approvals are kept that are for always."""
    return cache_home() / "mcp" / "approvals.json"


@dataclass(frozen=True, slots=True)
class Standing:
    """How something stands: whether it is ``allowed``, and what has ``changed`` since it was."""

    allowed: bool
    changed: tuple[str, ...] = ()


class Approvals:
    """``file``: None keeps nothing beyond the session. ``names``: servers, and tools as SERVER.TOOL, that the
    user has named beforehand: they are allowed as they are found. Raises ConfigError."""

    def __init__(self, file: Path | None, names: tuple[str, ...] = ()) -> None:
        self.file, self._names = file, frozenset(names)
        self._session: dict[str, dict[str, Any]] = {}
        self.kept()  # a file that cannot be read is refused before anything is asked

    def kept(self) -> dict[str, dict[str, Any]]:
        """What is allowed for always, by its hash. Raises ConfigError: nothing is allowed by a file that is
        not understood."""
        if self.file is None:
            return {}
        remedy = "remove it: everything is asked again then"
        table = read_json(self.file, MAX_BYTES, ConfigError, remedy, optional=True)
        allowed = table.get("allowed", {})
        fine = isinstance(allowed, dict) and all(isinstance(one, dict) for one in allowed.values())
        if not fine or table.get("version", VERSION) != VERSION:
            raise ConfigError(f"{self.file} is no file of approvals of version {VERSION}", remedy)
        return allowed

    def standing(self, spec: ServerSpec, tool: Tool | None = None) -> Standing:
        """How a tool stands, or (None) the start of its server. Raises ConfigError."""
        if _name(spec, tool) in self._names:
            return Standing(True)
        parts = _parts(tool)
        known = {**self.kept(), **self._session}
        if fingerprint(spec, parts) in known:
            return Standing(True)
        return Standing(False, _changes(spec, tool, parts, known.values()))

    def grant(self, spec: ServerSpec, tool: Tool | None, consent: Consent) -> None:
        """Remember a consent for as long as it says. Raises ConfigError, OSError."""
        if consent not in ("session", "always"):
            return
        parts = _parts(tool)
        entry = {
            "server": spec.name,
            "tool": None if tool is None else tool.name,
            "address": spec.address,
            "folder": spec.folder,
            "at": fingerprint(spec, {}),
            "parts": parts,
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        self._session[fingerprint(spec, parts)] = entry
        if consent == "always" and self.file is not None:
            self._change({fingerprint(spec, parts): entry}, ())

    def forget(self, name: str) -> int:
        """Take back what was allowed for always, by SERVER or SERVER.TOOL; how many. Raises ConfigError."""
        gone = [key for key, one in self.kept().items() if name in (one.get("server"), _entry_name(one))]
        self._change({}, gone)
        return len(gone)

    def _change(self, more: Mapping[str, dict[str, Any]], gone: list[str] | tuple[str, ...]) -> None:
        assert self.file is not None
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # Read under the lock: two sessions may each have allowed something.
        with lock(self.file.with_name(f"{self.file.name}.lock")):
            allowed = {key: one for key, one in self.kept().items() if key not in gone} | dict(more)
            with writing(self.file, durable=True, private=True) as out:
                out.write(json_text({"version": VERSION, "allowed": allowed}, indent=1).encode())


def _parts(tool: Tool | None) -> dict[str, str]:
    return {} if tool is None else tool.parts


def _name(spec: ServerSpec, tool: Tool | None) -> str:
    return spec.name if tool is None else f"{spec.name}.{tool.name}"


def _entry_name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("server")) if entry.get("tool") is None else f"{entry.get('server')}.{entry['tool']}"


def _changes(spec: ServerSpec, tool: Tool | None, parts: Mapping[str, str], known: Any) -> tuple[str, ...]:
    """What is other than when something of this name, or of this content, was last allowed."""
    same, moved = None, None
    for one in known:
        if one.get("server") != spec.name or (one.get("tool") is None) != (tool is None):
            continue
        told = one.get("parts")
        told = told if isinstance(told, dict) else {}
        if tool is None or one.get("tool") == tool.name:
            same = {**one, "parts": told}
        elif all(told.get(key) == parts[key] for key in ("description", "schema")):
            moved = one
    if same is None:
        return () if moved is None else (f"its name: it was {moved.get('tool')!r:.80}",)
    changed = [key for key, digest in parts.items() if same["parts"].get(key) != digest]
    if same.get("at") != fingerprint(spec, {}):
        moved = same.get("folder") not in (None, spec.folder)
        if moved:
            changed.insert(0, f"the folder that it runs in: it was {same.get('folder')!r:.200}")
        if not moved or same.get("address") != spec.address:
            changed.insert(0, f"what is run or reached: it was {same.get('address')!r:.200}")
    return tuple(changed)
