"""``minicpm4 mcp data``: conversations with calls of tools, to train on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.asked_model import AskedModel, EndpointOption, asked_model
from minicpm4.cli.mcp_agent import tell_step
from minicpm4.cli.mcp_servers import ServerFlags, print_plan, tell_troubles
from minicpm4.cli.options import DEFAULT_MODEL, EngineFlags, ModelOption, expand, require_only
from minicpm4.cli.sampling import SamplingFlags
from minicpm4.cli.terminal import one_line, progress_or_lines
from minicpm4.config.strict import check_choice, check_integer, require, suggest
from minicpm4.errors import ConfigError
from minicpm4.files import lines_of, parse_json, read_text

if TYPE_CHECKING:
    from minicpm4.agents.mcp.data.making import Maker, Query
    from minicpm4.agents.mcp.data.talks import Counts, Dropped, Talk
    from minicpm4.agents.mcp.toolbox import Toolbox
    from minicpm4.agents.mcp.tools import Tool

MADE = ("forward", "reverse")
KINDS = (*MADE, "xlam", "glaive", "toolbench")
MAX_BYTES = 64 << 20
PARTS = "parts"


@expand
def data(
    line: typer.Context,
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="forward: queries, then what the agent makes of them; reverse: calls, then the query that "
            "asks for them; xlam, glaive, toolbench: files of that layout.",
        ),
    ],
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="What is converted: JSON, or JSON lines.")
    ] = None,
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="talks.jsonl for `minicpm4 train`, dropped.jsonl with reasons, counts.json; and what is "
            "begun.",
        ),
    ],
    model: ModelOption = DEFAULT_MODEL,
    endpoint: EndpointOption = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Forward: queries, a line each, as text or as JSON with query and answer: what was done is "
            "then kept only if it ends in that answer. Default: the model writes them.",
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="Queries, or calls, for each tool (or two tools).")] = 10,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Reverse: two tools of a server, one after the other.")
    ] = False,
    tool: Annotated[
        list[str] | None,
        typer.Option(metavar="SERVER.TOOL", help="Make them of this tool alone; repeatable."),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--unverified",
            help="Reverse: keep a query only if the model, given it, calls the same tool.",
        ),
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be started and made; do nothing.")
    ] = False,
    flags: ServerFlags,
    engine: EngineFlags,
    sampling: SamplingFlags,
) -> None:
    """Make conversations to train on, or convert those of others; each call is asked for.

    What was made is kept piece by piece: the same command goes on where it was interrupted.
    """
    check_choice("KIND", kind, KINDS)
    check_integer("--count", count, 1, 1000)
    require(kind not in MADE or not files, f"{kind} takes no files", "give --queries, or name a layout")
    _require_read(line, kind, queries is not None)
    if kind not in MADE:
        _convert(kind, files or [], output, dry_run)
        return
    who = asked_model(line, model, endpoint, engine, sampling)
    asked = _read_queries(queries) if queries is not None else None
    if dry_run:
        print_plan(flags)
        what = f"{len(asked)} queries" if asked is not None else f"{count} for each of the tools"
        print(f"then {what}, {kind}, into {output}; each call that is not allowed asks")
        return
    flags.read(tell=False)
    about = {"version": 2, "kind": kind, "verify": verify}
    _make(who, about, output, flags, tool or (), count, asked, pairs)


def _make(
    who: AskedModel,
    about: dict[str, Any],
    output: Path,
    flags: ServerFlags,
    names: Sequence[str],
    count: int,
    asked: list[Query] | None,
    pairs: bool,
) -> None:
    """Forward or in reverse, as ``about`` says."""
    from minicpm4.agents.mcp.data.making import Maker
    from minicpm4.agents.mcp.data.talks import write_set
    from minicpm4.files import keeping

    speaker = who.load()
    with (
        keeping(output / PARTS, {**about, **who.about(speaker)}) as kept,
        flags.toolbox() as (blocking, box),
        progress_or_lines("making", "talks") as progress,
    ):
        blocking.run(box.refresh())
        tell_troubles(box)
        tools = _chosen(box, names)
        maker = Maker(model=speaker, box=box, kept=kept, verify=about["verify"], step=tell_step)
        forward = about["kind"] == "forward"
        work = _forward(maker, tools, count, asked) if forward else _reverse(maker, tools, count, pairs)
        found = blocking.run(_all(work, progress))
    _tell(write_set(output, found), output)


async def _all(work: Any, progress: Any) -> list[Talk | Dropped]:
    found = []
    async for one, total in work:
        found.append(one)
        if progress is not None:
            progress(len(found), total)
    return found


async def _forward(maker: Maker, tools: list[Tool], count: int, asked: list[Query] | None) -> Any:
    from minicpm4.agents.mcp.data.talks import Dropped

    every = asked if asked is not None else await maker.queries(tools, count)
    for one in every:
        yield (one if isinstance(one, Dropped) else await maker.forward(one)), len(every)


async def _reverse(maker: Maker, tools: list[Tool], count: int, pairs: bool) -> Any:
    from minicpm4.agents.mcp.data.making import pairs_of

    units: list[tuple[Tool, ...]] = [*pairs_of(tools)] if pairs else [(one,) for one in tools]
    require(bool(units), "no server has two tools", "leave out --pairs")
    for unit in units:
        for number in range(count):
            yield await maker.reverse(unit, number), len(units) * count


def _chosen(box: Toolbox, names: Sequence[str]) -> list[Tool]:
    require(bool(box.tools), "there is no tool to work with", "see: minicpm4 mcp servers")
    return [box.find(name) for name in names] or list(box.tools.values())


def _require_read(line: typer.Context, kind: str, has_queries: bool) -> None:
    """Raise ConfigError for an option that this kind of work does not read."""
    if kind not in MADE:
        require_only(line, ("kind", "files", "output", "dry_run"), f"{kind}, which converts files")
        return
    every = {one.name or "" for one in line.command.params}
    others = ("queries",) if kind == "reverse" else ("pairs", "verify")
    require_only(line, every.difference(others), kind)
    if has_queries:
        require_only(line, every.difference(("count", "tool")), "--queries, which are there already")


def _convert(layout: str, files: list[Path], output: Path, dry_run: bool) -> None:
    from minicpm4.agents.mcp.data.layouts import converted
    from minicpm4.agents.mcp.data.talks import write_set

    require(bool(files), f"nothing to convert: {layout} needs files", "name them behind it")
    for file in files:
        require(file.is_file(), f"there is no file {file}")
    if dry_run:
        print(f"{len(files)} files of the layout {layout} would be converted, into {output}")
        return
    with progress_or_lines("converting", "talks") as progress:
        tell = None if progress is None else lambda done: progress(done, done + 1)
        counts = write_set(output, converted(layout, files), tell)
    _tell(counts, output)


def _read_queries(file: Path) -> list[Query]:
    return list(_queries(file, read_text(file, MAX_BYTES, ConfigError)))


def _queries(file: Path, text: str) -> Iterator[Query]:
    from minicpm4.agents.mcp.data.making import Query

    found = 0
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        found += 1
        where = f"{file}, line {number}"
        if not line.lstrip().startswith("{"):
            yield Query(text=line.strip())
            continue
        one = parse_json(line, where, ConfigError)
        for name in one.keys() - {"query", "answer"}:
            raise ConfigError(f"{where} has an unknown key {name!r:.80}", suggest(name, ["query", "answer"]))
        fine = all(isinstance(one.get(name, ""), str) for name in ("query", "answer"))
        require(fine and bool(one.get("query", "").strip()), f"{where} has no query, or one that is no text")
        yield Query(text=one["query"], answer=one.get("answer", ""))
    require(found > 0, f"{file} has no query")


def _tell(counts: Counts, output: Path) -> None:
    from minicpm4.agents.mcp.data.talks import REASONS

    print(f"{one_line(str(output))}: {counts.kept:,} conversations with {counts.calls:,} calls")
    for reason, number in sorted(counts.dropped.items(), key=lambda one: -one[1]):
        print(f"left out {number:,}, {reason}: {REASONS[reason]}")
