"""Which servers there are: the ``mcpServers`` table that other clients write, too."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from minicpm4.agents.mcp.secret import secret_words
from minicpm4.config.strict import check_scalar, require, shown, suggest
from minicpm4.errors import ConfigError
from minicpm4.files import read_json

__all__ = ["MAX_SERVERS", "ServerConfig", "ServerSpec", "read_config", "spec_of"]

MAX_CONFIG_BYTES = 1 << 20
MAX_SERVERS = 64
MAX_SECONDS = 3600.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,47}")  # without a dot: SERVER.TOOL is one thing only
_VARIABLE = re.compile(r"\$\{(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_INPUT = re.compile(r"\$\{[^}]*\}")
_TABLES = ("mcpServers", "servers")  # the latter as VS Code writes it
_STDIO, _HTTP = ("stdio",), ("http", "streamable-http", "streamableHttp", "streamable_http")
_KNOWN = ("command", "args", "env", "cwd", "url", "headers", "disabled", "timeout", "type", "transport")
_FILLED = ("command", "args", "env", "cwd", "url", "headers")
_UNASKED = ("autoApprove", "alwaysAllow", "trust")
_MERE_WORDS = ("description", "name", "note", "notes", "comment", "_comment", "icon", "homepage")


class _UnsetError(ConfigError):
    """A variable that an entry wants is not set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSpec:
    """One server: a ``command`` that is started and spoken to over its standard streams, or the ``url`` of
    one that runs. ``env``: variables that it gets beside the few that every server gets; ``headers``: sent
    with each request. ``timeout``: seconds that a call may take. ``filled``: variables whose values stand in
    any of these; ``words``: the command line, or the URL, with names in place of those that may be secret
    (none: it holds no variable)."""

    name: str
    command: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    disabled: bool = False
    timeout: float = 60.0
    filled: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """The command line, or the URL, as a person is shown it: without what may be secret."""
        if self.url is not None:
            parts = urlsplit(self.url)
            port = f":{parts.port}" if parts.port else ""
            query = "?…" if parts.query else ""
            # Who is asked is shown in any case, also where a variable says it.
            path = re.sub(r"^[^/]*//[^/?#]*", "", self.words[0] if self.words else self.url)
            path = re.split(r"[?#]", path, maxsplit=1)[0]
            path = f"/{path}" if path and not path.startswith("/") else path
            return f"{parts.scheme}://{parts.hostname}{port}{path}{query}"
        words = self.words or (self.command or "", *self.args)
        return " ".join(repr(w) if not w or re.search(r"[\s'\"]", w) else w for w in words)

    @property
    def folder(self) -> str | None:
        """In which a command runs: what a relative word of it names is another thing in another folder."""
        if self.command is None:
            return None
        try:
            return os.path.abspath(self.cwd or ".")
        except OSError:  # the folder is gone, and nothing in it can be named
            return self.cwd or "."

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what runs, or who is asked."""
        return {
            "command": self.command,
            "args": list(self.args),
            "env": dict(sorted(self.env.items())),
            "cwd": self.folder,
            "url": self.url,
            "headers": dict(sorted(self.headers.items())),
        }


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The servers of a file, by name, and ``notes``: what in it is not followed."""

    servers: Mapping[str, ServerSpec]
    notes: tuple[str, ...] = ()


def read_config(path: Path, variables: Mapping[str, str] | None = None) -> ServerConfig:
    """The servers of a file. ``variables``: what ``${NAME}`` in it stands for; None: the environment. A
    server that wants one that is not set is left out, and told.

    Raises ConfigError.
    """
    whole = read_json(
        path, MAX_CONFIG_BYTES, ConfigError, 'write {"mcpServers": {"name": {"command": "…", "args": []}}}'
    )
    table = next((whole[key] for key in _TABLES if key in whole), None)
    require(
        isinstance(table, Mapping),
        f"{path} has no table mcpServers",
        'write {"mcpServers": {"name": {"command": "…"}}}',
    )
    assert isinstance(table, Mapping)
    require(len(table) <= MAX_SERVERS, f"{path} has {len(table)} servers, the limit is {MAX_SERVERS}")
    notes: list[str] = [
        f"{path}: {key!r:.60} is not known and not followed" for key in whole if key not in _TABLES
    ]
    values = os.environ if variables is None else variables
    servers = {}
    for name, one in table.items():
        try:
            servers[name] = spec_of(name, one, f"{path}: {name}", values, notes)
        except _UnsetError as error:  # the others may work all the same
            notes.append(f"{name} is not used: {error}")
    require(
        len({name.casefold() for name in table}) == len(table),
        f"{path}: two names of servers differ in case alone",
        "rename one",
    )
    return ServerConfig(servers, tuple(notes))


def spec_of(
    name: str, table: Any, where: str, variables: Mapping[str, str], notes: list[str] | None = None
) -> ServerSpec:
    """One server's entry; to ``notes`` is added what is not followed. Raises ConfigError."""
    require(
        _NAME.fullmatch(name) is not None and "__" not in name,
        f"{where}: {name!r:.60} cannot name a server",
        "letters, digits, '-' and single '_', at most 48, a letter or digit first",
    )
    require(isinstance(table, Mapping), f"{where} = {shown(table)} is no table")
    notes = [] if notes is None else notes
    for key in table:
        if key in _UNASKED:
            notes.append(f"{where}: {key} is not followed: nothing runs unasked (docs/mcp.md)")
        elif key not in _KNOWN and key not in _MERE_WORDS:
            notes.append(f"{where}: {key!r:.60} is not known and not followed; {suggest(key, list(_KNOWN))}")
    kind = table.get("type", table.get("transport"))
    command = _text(table, "command", where, variables)
    url = _text(table, "url", where, variables)
    require(kind != "sse", f"{where}: the transport 'sse' is no longer spoken", "use its streamable HTTP URL")
    require(
        kind in (None, *_STDIO, *_HTTP),
        f"{where}.type = {shown(kind)} is not a transport",
        "use stdio or http",
    )
    require(
        (command is None) != (url is None),
        f"{where} has {'both' if command else 'neither'} command and url",
        "a server is started by its command, or reached at its url",
    )
    require(
        kind is None or (kind in _STDIO) == (command is not None),
        f"{where}.type = {shown(kind)} does not fit the {'command' if command else 'url'} beside it",
    )
    if url is not None:
        _check_url(url, where)
    seconds = check_scalar(table.get("timeout", 60.0), float, f"{where}.timeout")
    require(
        0 < seconds <= MAX_SECONDS,
        f"{where}.timeout = {seconds:g} is outside 0 to {MAX_SECONDS:g} seconds",
        "give seconds, though some clients mean milliseconds",
    )
    filled, words = _shown_words(table, where, variables)
    return ServerSpec(
        name=name,
        command=command,
        args=_texts(table, where, variables),
        env=_pairs(table, "env", where, variables),
        cwd=_text(table, "cwd", where, variables),
        url=url,
        headers=_headers(table, where, variables),
        disabled=check_scalar(table.get("disabled", False), bool, f"{where}.disabled"),
        timeout=seconds,
        filled=filled,
        words=words,
    )


def _shown_words(
    table: Mapping[str, Any], where: str, variables: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """See ServerSpec: ``filled`` and ``words``."""
    written = json.dumps({key: table.get(key) for key in _FILLED})
    filled = {one[1]: variables[one[1]] for one in _VARIABLE.finditer(written) if variables.get(one[1])}
    if not filled:
        return {}, ()
    names = {name: f"${{{name}}}" for name, value in filled.items() if secret_words(name, value)}
    shown_variables = {**variables, **names}
    first = [_text(table, key, where, shown_variables) for key in ("command", "url")]
    return filled, (*filter(None, first), *_texts(table, where, shown_variables))


def _check_url(url: str, where: str) -> None:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        fine = False
    require(fine, f"{where}.url is no address of a server", "write it as https://host/path")
    require(
        "@" not in parts.netloc, f"{where}.url holds a user's name", "send an Authorization header instead"
    )


def _text(table: Mapping[str, Any], key: str, where: str, variables: Mapping[str, str]) -> str | None:
    if table.get(key) is None:
        return None
    value = _filled(check_scalar(table[key], str, f"{where}.{key}"), f"{where}.{key}", variables)
    require(bool(value), f"{where}.{key} is empty")
    return value


def _texts(table: Mapping[str, Any], where: str, variables: Mapping[str, str]) -> tuple[str, ...]:
    values = table.get("args") or []
    require(isinstance(values, list), f"{where}.args = {shown(values)} is no list")
    places = [(f"{where}.args[{i}]", one) for i, one in enumerate(values)]
    return tuple(_filled(check_scalar(one, str, place), place, variables) for place, one in places)


def _pairs(table: Mapping[str, Any], key: str, where: str, variables: Mapping[str, str]) -> dict[str, str]:
    values = table.get(key) or {}
    require(isinstance(values, Mapping), f"{where}.{key} = {shown(values)} is no table")
    made = {}
    for name, value in values.items():
        place = f"{where}.{key}.{name}"
        # Its value may be a secret: errors do not show it.
        require(isinstance(value, str) and "\0" not in value, f"{place} is no text", "write it in quotes")
        require(bool(name) and not set(name) & set("=\0"), f"{where}.{key} has the name {shown(name)}")
        made[name] = _filled(value, place, variables)
    return made


def _headers(table: Mapping[str, Any], where: str, variables: Mapping[str, str]) -> dict[str, str]:
    made = _pairs(table, "headers", where, variables)
    for name, value in made.items():
        fine = re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) and re.fullmatch(r"[\x20-\x7e]*", value)
        require(bool(fine), f"{where}.headers.{name:.60} is no header", "visible ASCII characters only")
    return made


def _filled(text: str, where: str, variables: Mapping[str, str]) -> str:
    """``text`` with ``${NAME}``, ``${NAME:-else}`` and ``${env:NAME}`` filled in. Raises ConfigError."""

    def value(found: re.Match[str]) -> str:
        given = variables.get(found[1]) or found[2]
        if given is None:
            raise _UnsetError(f"{where} wants the variable {found[1]}, which is not set", "set it")
        return given

    rest = _VARIABLE.sub("", text)
    left = _INPUT.search(rest)
    require(
        left is None, f"{where} holds {left[0] if left else ''}, which is not filled in here", "write it out"
    )
    return _VARIABLE.sub(value, text)
