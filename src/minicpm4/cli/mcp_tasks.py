"""``minicpm4 mcp tasks``: a hundred tasks over twelve real servers, scored by what is true at their end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.asked_model import AskedModel, EndpointOption, asked_model
from minicpm4.cli.asking import Terminal, shown
from minicpm4.cli.eval_shares import told_cut
from minicpm4.cli.kept_work import KeepIfOption, MinutesOption, deadline, tell_left
from minicpm4.cli.options import (
    DEFAULT_MODEL,
    EngineFlags,
    ModelOption,
    check_outputs,
    expand,
    require_only,
    write_figures,
)
from minicpm4.cli.sampling import SamplingFlags
from minicpm4.cli.terminal import one_line, progress_or_lines, show, table
from minicpm4.config.strict import check_integer, from_table, require, suggest
from minicpm4.errors import ToolServerError, UnsupportedError
from minicpm4.files import Kept, lock, write_file, write_json
from minicpm4.places import cache_home

if TYPE_CHECKING:
    from minicpm4.agents.mcp.blocking import Blocking
    from minicpm4.agents.mcp.tasks.running import Runner
    from minicpm4.agents.mcp.tasks.task import Task

WAYS = {"both": (True, False), "held": (True,), "free": (False,)}
_MARK = ("wanted", "given", "refused", "cut")  # what is kept of one, in order
Scored = dict[bool, list[tuple[str, dict[str, Any]]]]


@expand
def tasks(
    line: typer.Context,
    only: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Tasks, as sqlite-3, or all of a server. Default: all."),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    endpoint: EndpointOption = None,
    offer: Annotated[int, typer.Option(help="Tools offered for each task, the right ones among them.")] = 10,
    calls: Annotated[
        str | None,
        typer.Option(
            metavar="WAY",
            help="held: to the tools' schemas; free; or both, one by one (both; with --endpoint free).",
        ),
    ] = None,
    minutes: MinutesOption = None,
    unasked: Annotated[
        bool,
        typer.Option(
            "--unasked",
            help="Start the servers and carry the model's calls out without asking: they run with your "
            "rights, code that the model writes too.",
        ),
    ] = False,
    gold: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Ask no model: make the right calls, and write the conversations there, and the servers' "
            "tools beside them (.tools.json), for `mcp eval`.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Scores and every task, as JSON.")
    ] = None,
    list_them: Annotated[bool, typer.Option("--list", help="Print the tasks; do nothing.")] = False,
    *,
    keep: KeepIfOption = None,
    engine: EngineFlags,
    sampling: SamplingFlags,
) -> None:
    """Let a model do a hundred tasks with twelve real servers, and look at what is true at the end.

    Each is done in a folder that is made anew. Steps are scored by function, parameters and values with the
    right steps before; then the agent does the whole. Servers that are not installed are installed.
    A step that could not be asked for, as where a prompt does not fit, is in no share; a task that ended so
    is looked at as any.
    """
    wanted = _wanted(only or [])
    if list_them:
        _list(wanted)
        return
    check_integer("--offer", offer, 1, 128)
    asked = asked_model(line, model, endpoint, engine, sampling)
    ways = _ways(calls, asked)
    _check_outputs(line, output, gold)
    until = deadline(minutes)
    with _alone() as folder, _asking(unasked) as blocking:
        runner, wanted = _runner(wanted, offer, blocking, folder)
        if gold is not None:
            blocking.run(_write_gold(runner, wanted, gold))
            return
        speaker = asked.load()
        about = {"version": 2, "kind": "tasks", "offer": offer, **asked.about(speaker)}
        kept = Kept(keep, about) if keep is not None else None
        found: Scored = {way: [] for way in ways}
        with progress_or_lines("doing", "tasks") as progress:
            done = blocking.run(_each(runner, speaker, wanted, found, kept, until, progress))
    if output is not None:
        made = {("held" if way else "free"): dict(some) for way, some in found.items()}
        write_figures(output, {**about, "tasks": made})
    _show(found)
    _tell_refused(found)
    _tell_cut(found, asked.limit)
    tell_left(len(wanted) - done, "tasks", kept=kept is not None)


def _ways(calls: str | None, asked: AskedModel) -> tuple[bool, ...]:
    """Whether calls are held: of each way in turn. Raises ConfigError."""
    if calls is None:
        return WAYS["both"] if asked.held(None) else WAYS["free"]
    require(calls in WAYS, f"--calls {calls!r:.40} is not a choice", suggest(calls, list(WAYS)))
    asked.held(WAYS[calls][0], f"--calls {calls}")
    return WAYS[calls]


def _check_outputs(line: typer.Context, output: Path | None, gold: Path | None) -> None:
    """Refuse before the work what could not be written after it, or is not read. Raises ConfigError."""
    check_outputs({"--output": output})
    if gold is not None:
        require_only(line, ("only", "offer", "unasked", "gold"), "--gold, which asks no model")
        for file in (gold, _pool_file(gold)):
            check_outputs({"--gold": file})


def _pool_file(gold: Path) -> Path:
    return gold.with_suffix(".tools.json")


def _wanted(names: list[str]) -> list[Task]:
    from minicpm4.agents.mcp.tasks.task import read_tasks

    every = read_tasks()
    known = {name for one in every for name in (one.id, one.group)}
    for name in names:
        require(name in known, f"there is no task {name!r:.60}", suggest(name, sorted(known)))
    wanted = [one for one in every if not names or one.id in names or one.group in names]
    # The first of each server, then the second: what a run has done when its time is up is of all servers.
    return sorted(wanted, key=lambda one: int(one.id.rpartition("-")[2]))


def _list(wanted: list[Task]) -> None:
    made = table("task", "servers", "what is asked")
    for one in wanted:
        made.add_row(one.id, ", ".join(one.servers), one.task)
    show(made)


def _asking(unasked: bool) -> Blocking:
    """Who is asked: the terminal, or nobody."""
    from minicpm4.agents.mcp.blocking import Blocking

    terminal = Terminal()
    return Blocking(lambda _: "session", lambda _: None) if unasked else Blocking(terminal.may, terminal.tell)


@contextmanager
def _alone() -> Iterator[Path]:
    """Where tasks are done: one place for all runs, since it stands in the prompts; one run at a time."""
    folder = cache_home() / "mcp" / "tasks"
    folder.parent.mkdir(parents=True, exist_ok=True)

    def busy() -> None:
        print("note: another run does tasks: waiting for its end", file=sys.stderr)

    with lock(folder.with_name("tasks.lock"), busy):
        yield folder


def _runner(wanted: list[Task], offer: int, blocking: Blocking, folder: Path) -> tuple[Runner, list[Task]]:
    """Whoever runs them, and those whose servers can be had; the others are told."""
    from minicpm4.agents.mcp.catalogue import CATALOGUE
    from minicpm4.agents.mcp.install import install
    from minicpm4.agents.mcp.tasks.running import COMPANIONS, Runner, tools_of

    needed = dict.fromkeys([*COMPANIONS, *(name for one in wanted for name in one.servers)])
    there, missing = [], {}
    for name in needed:
        try:
            install(CATALOGUE[name])
            there.append(name)
        except (ToolServerError, UnsupportedError, OSError) as error:
            missing[name] = str(error)
            print(f"note: without {name}: {error}", file=sys.stderr)
    left = [one for one in wanted if not missing.keys() & {*one.servers}]
    require(bool(left), "no task can be done", "see: minicpm4 mcp catalogue")
    if len(left) < len(wanted):
        print(f"note: {len(wanted) - len(left)} tasks are left out for it", file=sys.stderr)
    pool = blocking.run(tools_of(there, folder, blocking.ask, ()))
    return Runner(folder=folder, pool=pool, ask=blocking.ask, offer=offer), left


async def _each(
    runner: Runner,
    model: Any,
    wanted: list[Task],
    found: Scored,
    kept: Kept | None,
    until: float,
    progress: Any,
) -> int:
    """Score them in turn; how many there was time for. A task whose servers fail is told of and left out."""
    for number, task in enumerate(wanted):
        try:
            if not await _scored(runner, model, task, found, kept, until):
                return number
        except (ToolServerError, UnsupportedError) as error:
            _tell_left_out(task, error)
        if progress is not None:
            progress(number + 1, len(wanted))
    return len(wanted)


async def _scored(
    runner: Runner, model: Any, task: Task, found: Scored, kept: Kept | None, until: float
) -> bool:
    """Score a task each way; whether there was time for it."""
    gold = None
    for held, scores in found.items():
        one = None if kept is None else kept.get(_outcome, task.id, held)
        if one is None:
            if time.monotonic() > until:
                return False
            gold = gold or await runner.gold(task)
            one = asdict(await runner.score(model, task, gold, held=held))
            one["marks"] = [[mark[name] for name in _MARK] for mark in one["marks"]]
            if kept is not None:
                kept.put(one, task.id, held)
        scores.append((task.id, one))
    return True


def _outcome(value: Any) -> dict[str, Any]:
    """What was kept of a task, looked at: an Outcome, but for the names of its marks. Raises ConfigError."""
    from minicpm4.agents.mcp.tasks.running import Outcome

    marks = [
        {"server": "", "refused": mark[2], **dict(zip(_MARK[: len(mark)], mark, strict=True))}
        for mark in value["marks"]
    ]
    from_table(Outcome, {**value, "marks": marks, "refused": value["refused"]}, "it", any_text=True)
    return dict(value)


async def _write_gold(runner: Runner, wanted: list[Task], file: Path) -> None:
    """A task whose servers fail, or that its calls do not solve, is told of and left out."""
    lines = []
    for task in wanted:
        try:
            messages, tools = await runner.gold(task)
        except (ToolServerError, UnsupportedError) as error:
            _tell_left_out(task, error)
            continue
        lines.append(json.dumps({"messages": messages, "tools": tools}, ensure_ascii=False) + "\n")
        print(f"{task.id}: {len([one for one in messages if one['role'] == 'tool'])} calls", file=sys.stderr)
    require(
        bool(lines), "no task was solved by its own calls", "see the notes above, and: minicpm4 mcp catalogue"
    )
    write_file(file, "".join(lines))
    pool = _pool_file(file)
    write_json(pool, [tool.function["function"] for tool in runner.pool])
    print(f"{file}: {len(lines)} conversations; {pool}: {len(runner.pool)} tools")


def _tell_left_out(task: Task, error: Exception) -> None:
    print(f"note: {task.id} is left out: {shown(str(error))}", file=sys.stderr)


def _tell_refused(found: Scored) -> None:
    for held, scores in found.items():
        steps = [refused for _, one in scores for _, _, refused, *_ in one["marks"] if refused]
        ends = [one["refused"] for _, one in scores if one["refused"]]
        for what, why in (("steps", steps), ("tasks", ends)):
            if why:
                way = "held" if held else "free"
                told = f"note: {len(why)} {what} ({way}) could not be asked for to their end: {why[0]}"
                print(one_line(told), file=sys.stderr)


def _tell_cut(found: Scored, limit: str) -> None:
    """How many steps, and how many of the agent's last answers, the limit of tokens ended."""
    for held, scores in found.items():
        way = "held" if held else "free"
        steps = [mark[3] if len(mark) > 3 else None for _, one in scores for mark in one["marks"]]
        print(f"{told_cut(steps, limit, f'steps ({way})')}; ", end="")
        print(told_cut([one["ended"] == "cut" for _, one in scores], limit, "tasks"))


def _show(found: Scored) -> None:
    """A line for each server and way, and for all."""
    from minicpm4.agents.mcp.evaluate import Mark, score_of

    heads = ("calls are", "tasks", "end state", "calls", "function", "parameters", "values", "unfit")
    made = table("server", *heads, left=2)
    for held, scores in found.items():
        groups: dict[str, list[dict[str, Any]]] = {}
        for name, one in scores:
            groups.setdefault(name.rpartition("-")[0], []).append(one)
        for name, some in [*sorted(groups.items()), ("all tasks", [one for _, one in scores])]:
            marks = [
                Mark(server=name, wanted=tuple(wanted), given=given and tuple(given), refused=refused)
                for one in some
                for wanted, given, refused, *_ in one["marks"]
            ]
            score = score_of(marks)
            solved = 100 * sum(not one["wrong"] for one in some) / max(1, len(some))
            shares = [f"{100 * share:.1f}" for share in (score.function, score.names, score.values)]
            unfit = f"{sum(one['unfit'] for one in some)} of {sum(one['made'] for one in some)}"
            way = "held" if held else "free"
            made.add_row(name, way, str(len(some)), f"{solved:.1f}", str(score.calls), *shares, unfit)
    show(made)
