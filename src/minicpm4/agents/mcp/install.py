"""Servers of the catalogue, each installed in an environment of its own in the cache folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minicpm4.agents.mcp.catalogue import CATALOGUE, Entry
from minicpm4.config.strict import require, suggest
from minicpm4.errors import ConfigError, ToolServerError, UnsupportedError
from minicpm4.files import json_text, lock, read_json, remove_folder, write_file, writing
from minicpm4.places import cache_home

__all__ = ["add_server", "entry_of", "install", "install_steps", "installed", "server_table"]

MAX_CONFIG_BYTES = 1 << 20
INSTALL_SECONDS = 1800.0
MARKER = "installed.json"  # written last: without it a folder is half an installation
_LAST = 12  # lines of a failed installation that are told


def entry_of(name: str) -> Entry:
    """Raises ConfigError, which names the nearest."""
    if name not in CATALOGUE:
        raise ConfigError(f"the catalogue has no server {name}", suggest(name, list(CATALOGUE)))
    return CATALOGUE[name]


def home_of(entry: Entry) -> Path:
    return cache_home() / "mcp" / "installed" / entry.name


def program_of(entry: Entry) -> Path:
    """Where its program is, once it is installed."""
    home = home_of(entry)
    if entry.source == "npm":
        return home / "node_modules" / ".bin" / entry.program
    return home / "env" / ("Scripts" if sys.platform == "win32" else "bin") / entry.program


def installed(entry: Entry) -> bool:
    """Whether it is there, as the catalogue pins it now."""
    found = read_json(home_of(entry) / MARKER, MAX_CONFIG_BYTES, ConfigError, optional=True)
    return found.get("packages") == list(entry.packages) and program_of(entry).exists()


def install_steps(entry: Entry) -> list[list[str]]:
    """The commands that install it, which run code of strangers. Raises UnsupportedError."""
    if entry.missing:
        raise UnsupportedError(f"{entry.name} cannot be had here: {entry.missing}")
    for program in entry.system:
        if shutil.which(program) is None:
            raise UnsupportedError(
                f"{entry.name} needs the program {program}", f"install it: apt install {program}"
            )
    home = home_of(entry)
    if entry.source == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise UnsupportedError(f"{entry.name} needs npm", "install Node 20 or newer")
        # Scripts of packages do not run; the servers of the catalogue need none.
        return [
            [
                npm,
                "install",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--prefix",
                str(home),
                *entry.packages,
            ]
        ]
    python = home / "env" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    pip += ["--no-deps"] if entry.alone else []
    return [[sys.executable, "-m", "venv", str(home / "env")], [*pip, *entry.packages]]


def install(entry: Entry) -> None:
    """Install it, if it is not there. What was begun and not ended is begun anew. Raises UnsupportedError,
    ToolServerError with the last lines of what failed, OSError."""
    steps, home = install_steps(entry), home_of(entry)
    home.parent.mkdir(parents=True, exist_ok=True)
    with lock(home.with_name(f"{entry.name}.lock")):
        if installed(entry):
            return
        if home.exists():
            remove_folder(home)
        home.mkdir()
        for step in steps:
            _run(step, entry)
        if not program_of(entry).exists():
            raise ToolServerError(f"{entry.name} was installed, and has no program {entry.program}")
        write_file(home / MARKER, json_text({"packages": list(entry.packages)}) + "\n")


def _run(step: list[str], entry: Entry) -> None:
    try:
        done = subprocess.run(
            step,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolServerError(f"{entry.name} was not installed in {INSTALL_SECONDS:g} s") from error
    if done.returncode:
        last = " | ".join([line for line in done.stdout.splitlines() if line.strip()][-_LAST:])
        raise ToolServerError(f"{entry.name} could not be installed: {last[:2000]}", "check the network")


def server_table(entry: Entry, given: Mapping[str, str]) -> dict[str, Any]:
    """Its entry for ``mcpServers``. ``given``: what its settings are. Raises ConfigError."""
    for name in given:
        require(name in entry.settings, f"{entry.name} has no setting {name}", _settings(entry))
    for name, what in entry.settings.items():
        require(bool(given.get(name)), f"{entry.name} wants {name}: {what}", f"give --set {name}=…")
    args = [_filled(one, given) for one in entry.args]
    program = str(program_of(entry))
    if "xvfb-run" in entry.system:  # a screen of its own
        command, args = "xvfb-run", ["-a", program, *args]
    else:
        command = program
    env = {name: _filled(value, given) for name, value in entry.env.items()}
    env |= {name: f"${{{name}}}" for name in entry.needs}
    return {"command": command, "args": args, **({"env": env} if env else {})}


def _filled(text: str, given: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: given[found[1]], text)


def _settings(entry: Entry) -> str:
    return "it has: " + ", ".join(entry.settings) if entry.settings else "it has none"


def add_server(config: Path, name: str, table: Mapping[str, Any], *, replace: bool = False) -> None:
    """Write a server's entry into a file of servers, whole. Raises ConfigError, OSError."""
    config.parent.mkdir(parents=True, exist_ok=True)
    with lock(config.with_name(f".{config.name}.lock")):
        whole = read_json(config, MAX_CONFIG_BYTES, ConfigError, optional=True)
        servers = whole.setdefault("mcpServers", {})
        require(isinstance(servers, dict), f"{config}: mcpServers is no table")
        same = servers.get(name) == dict(table)
        require(
            replace or same or name not in servers,
            f"{config} has another server {name}",
            "give --replace, or --as another name",
        )
        servers[name] = dict(table)
        with writing(config, private=True) as out:
            out.write((json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode())
