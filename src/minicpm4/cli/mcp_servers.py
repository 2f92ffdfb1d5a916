"""``minicpm4 mcp servers``, ``tools``, ``search``, ``call`` and ``allowed``: each asked first."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.asking import Terminal, shown
from minicpm4.cli.options import expand
from minicpm4.cli.terminal import show, table
from minicpm4.config.strict import require, suggest
from minicpm4.errors import ConfigError, NotAllowedError, ToolServerError
from minicpm4.files import parse_json
from minicpm4.places import cache_home

if TYPE_CHECKING:
    from minicpm4.agents.mcp.approvals import Approvals
    from minicpm4.agents.mcp.blocking import Blocking
    from minicpm4.agents.mcp.config import ServerConfig, ServerSpec
    from minicpm4.agents.mcp.toolbox import Toolbox

MAX_SHOWN = 160  # characters of a description in a table


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFlags:
    """Which servers, and what is allowed."""

    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="Servers, as a table mcpServers. Default: what `minicpm4 mcp add` wrote.",
        ),
    ] = None
    server: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Use this server alone; repeatable.")
    ] = None
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Allow this server to start, or with SERVER.TOOL a tool to be called, without asking; "
            "repeatable.",
        ),
    ] = None

    def read(self, *, tell: bool = True) -> ServerConfig:
        """The servers; what is not followed is told. Raises ConfigError."""
        from minicpm4.agents.mcp.config import ServerConfig, read_config

        file = self.config or default_config()
        require(
            file.exists(),
            f"there is no {file}",
            'write one with {"mcpServers": …}, give --config, or: minicpm4 mcp add calculator',
        )
        found = read_config(file)
        for note in found.notes if tell else ():
            print(f"note: {shown(note)}", file=sys.stderr)
        for name in self.server or ():
            require(name in found.servers, f"there is no server {name}", suggest(name, list(found.servers)))
        for name in self.allow or ():
            known = any(f"{name}.".startswith(f"{one}.") for one in found.servers)
            require(known, f"--allow {name} names no server", suggest(name, list(found.servers)))
        wanted = {name: found.servers[name] for name in self.server or found.servers}
        return ServerConfig(wanted, found.notes)

    def approvals(self) -> Approvals:
        from minicpm4.agents.mcp.approvals import Approvals, approvals_file

        return Approvals(approvals_file(), tuple(self.allow or ()))

    @contextmanager
    def toolbox(self, terminal: Terminal | None = None) -> Iterator[tuple[Blocking, Toolbox]]:
        """A toolbox whose questions the terminal answers. Raises ConfigError."""
        from minicpm4.agents.mcp.blocking import Blocking
        from minicpm4.agents.mcp.toolbox import Toolbox

        terminal = terminal or Terminal()
        config, approvals = self.read(), self.approvals()
        with Blocking(terminal.may, terminal.tell) as blocking:
            box = Toolbox(config, approvals, blocking.ask)
            try:
                yield blocking, box
            finally:
                blocking.run(box.close())


def default_config() -> Path:
    """Where servers stand that nobody names a file for."""
    return cache_home() / "mcp" / "servers.json"


@expand
def servers(*, flags: ServerFlags) -> None:
    """Start the servers that may be started, and tell how they are."""
    with flags.toolbox() as (blocking, box):
        blocking.run(box.refresh())
        made = table("server", "state", "protocol", "tools", "at")
        for one in box.health:
            spec = box.servers[one.name].spec
            made.add_row(one.name, one.state, one.protocol or "-", str(one.tools), shown(spec.address))
        show(made)
        tell_troubles(box)


@expand
def tools(*, flags: ServerFlags, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """List the tools of all servers."""
    _list_tools(flags, "", 10_000, as_json)


@expand
def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What the tool is wanted for.")],
    *,
    flags: ServerFlags,
    most: Annotated[int, typer.Option("--most", "-n", help="Tools to list.")] = 10,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """List the tools that a question is most likely about."""
    _list_tools(flags, query, most, as_json)


def _list_tools(flags: ServerFlags, query: str, most: int, as_json: bool) -> None:
    from minicpm4.agents.mcp.search import best_tools

    with flags.toolbox() as (blocking, box):
        blocking.run(box.refresh())
        every = list(box.tools.values())
        found = best_tools(every, query, most) if query else every
        if as_json:
            print(json.dumps([tool.function["function"] for tool in found], indent=1))
        else:
            made = table("tool", "allowed", "arguments", "what it says of itself")
            for tool in found:
                allowed = box.approvals.standing(box.servers[tool.server].spec, tool).allowed
                told = shown(" ".join((tool.description or tool.title).split()))
                names = ", ".join(map(shown, (tool.schema.get("properties") or {})))
                more = f"{told[:MAX_SHOWN]}…" if len(told) > MAX_SHOWN else told
                made.add_row(shown(f"{tool.server}.{tool.name}"), "yes" if allowed else "asks", names, more)
            show(made)
        tell_troubles(box)


@expand
def call(
    tool: Annotated[str, typer.Argument(metavar="SERVER.TOOL", help="Which tool.")],
    arguments: Annotated[str, typer.Argument(metavar="JSON", help="Its arguments, as a JSON object.")] = "{}",
    *,
    flags: ServerFlags,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be started, asked and called; do nothing.")
    ] = False,
) -> None:
    """Call one tool, and print what it says."""
    given = parse_json(arguments, "the arguments", ConfigError)
    require(isinstance(given, dict), "the arguments are no JSON object", 'as in: \'{"expression": "1 + 1"}\'')
    if dry_run:
        print_plan(flags, tool, given)
        return
    with flags.toolbox() as (blocking, box):
        mine = {name: one for name, one in box.servers.items() if tool.startswith(f"{name}.")}
        box.servers = mine or box.servers  # the others need not be started
        blocking.run(box.refresh())
        _raise_troubles(box)
        result = blocking.run(box.call(tool, given))
    for note in result.notes:
        print(f"note: {shown(note)}", file=sys.stderr)
    if result.denied:
        raise NotAllowedError(shown(result.text))
    if result.failed:
        raise ToolServerError(shown(result.text))
    print(result.text if not sys.stdout.isatty() else shown(result.text))


@expand
def allowed(
    *,
    forget: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Take back what was allowed for SERVER, or for SERVER.TOOL."),
    ] = None,
) -> None:
    """List what is allowed for always, or take it back."""
    from minicpm4.agents.mcp.approvals import Approvals, approvals_file

    approvals = Approvals(approvals_file())
    if forget is not None:
        count = approvals.forget(forget)
        require(count > 0, f"nothing is allowed under the name {forget}", "see: minicpm4 mcp allowed")
        print(f"took back {count}")
        return
    made = table("server", "tool", "since", "at")
    for one in approvals.kept().values():
        tool = one.get("tool")
        name = "(to start)" if tool is None else str(tool)
        at = f"{one.get('address')} in {one['folder']}" if one.get("folder") else one.get("address")
        words = (one.get("server"), name, one.get("when"), at)
        made.add_row(*(shown(str(word)) for word in words))
    show(made)


def print_plan(flags: ServerFlags, tool: str = "", arguments: dict[str, Any] | None = None) -> None:
    """What would be started, reached and asked. Nothing is."""
    config, approvals = flags.read(), flags.approvals()
    made = table("step", "what", "asks", "details")
    for spec in config.servers.values():
        if spec.disabled or (tool and not tool.startswith(f"{spec.name}.")):
            continue
        asks = "no" if approvals.standing(spec).allowed else "yes"
        made.add_row("run" if spec.command else "reach", spec.name, asks, _start_details(spec))
    if tool:
        known = [one for one in approvals.kept().values() if tool == f"{one.get('server')}.{one.get('tool')}"]
        asks = "no" if tool in (flags.allow or ()) else "if it changed" if known else "yes"
        made.add_row("call", shown(tool), asks, shown(json.dumps(arguments, ensure_ascii=False)))
    show(made)


def _start_details(spec: ServerSpec) -> str:
    names = ", ".join([*spec.env, *spec.headers])
    folder = f" in {shown(spec.folder)}" if spec.folder else ""
    return shown(spec.address) + folder + (f" (with {shown(names)})" if names else "")


def tell_troubles(box: Toolbox) -> None:
    """What a person should know of the servers and their tools, on standard error."""
    for note in box.notes:
        print(f"note: {shown(note)}", file=sys.stderr)
    for trouble in box.troubles.values():
        print(f"note: {shown(trouble)}", file=sys.stderr)


def _raise_troubles(box: Toolbox) -> None:
    if not box.tools and box.troubles:
        raise ToolServerError("; ".join(map(shown, box.troubles.values())))
