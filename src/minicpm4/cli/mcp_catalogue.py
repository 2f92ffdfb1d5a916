"""``minicpm4 mcp catalogue`` and ``add``: servers that are known, and their installation."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minicpm4.cli.mcp_servers import default_config
from minicpm4.cli.terminal import show, table
from minicpm4.config.strict import require
from minicpm4.errors import ConfigError
from minicpm4.places import from_user

if TYPE_CHECKING:
    from minicpm4.agents.mcp.catalogue import Entry


def catalogue() -> None:
    """List the servers that are known: what they need, and what of them works."""
    from minicpm4.agents.mcp.catalogue import CATALOGUE
    from minicpm4.agents.mcp.install import installed

    made = table("server", "published as", "installed", "state", "needs", "of it")
    for entry in CATALOGUE.values():
        needs = [*(f"--set {name}" for name in entry.settings), *entry.needs, *entry.system]
        made.add_row(
            entry.name,
            entry.published or "-",
            "yes" if entry.packages and installed(entry) else "no",
            entry.state,
            ", ".join(needs) or "-",
            _told(entry),
        )
    show(made)


def _told(entry: Entry) -> str:
    stands_in = f"in place of {entry.stands_in}" if entry.stands_in else ""
    note = entry.note if entry.packages else entry.missing
    return "; ".join(filter(None, (stands_in, note)))


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A server of `minicpm4 mcp catalogue`.")],
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="What it has to be given; repeatable."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="Table of servers to write it into."),
    ] = None,
    called: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Its name there.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="In place of one that has this name.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands that install it; do nothing.")
    ] = False,
) -> None:
    """Install a server in an environment of its own, and write it into the table of servers. It is not
    started."""
    from minicpm4.agents.mcp.config import spec_of
    from minicpm4.agents.mcp.install import add_server, entry_of, install, install_steps, server_table

    entry, file = entry_of(name), config or default_config()
    made = server_table(entry, _given(setting or ()))
    spec_of(called or name, made, called or name, dict.fromkeys(entry.needs, "x"))  # a wrong name is refused
    steps = install_steps(entry)
    if dry_run:
        print("\n".join(shlex.join(step) for step in steps))
        return
    print(f"installing {', '.join(entry.packages)} …", file=sys.stderr)
    install(entry)
    add_server(file, called or name, made, replace=replace)
    print(f"{called or name} stands in {file}")
    for variable, what in entry.needs.items():
        print(f"note: set {variable}: {what}", file=sys.stderr)
    if told := _told(entry):
        print(f"note: {told}", file=sys.stderr)


def _given(settings: list[str] | tuple[str, ...]) -> dict[str, str]:
    made: dict[str, str] = {}
    for one in settings:
        name, equals, value = one.partition("=")
        require(bool(equals and value), f"--set {one!r:.80} is no NAME=VALUE", "as in --set folder=/tmp/x")
        if name in made:
            raise ConfigError(f"--set gives {name} twice")
        made[name] = str(from_user(value).absolute()) if name in ("folder", "file") else value
    return made
