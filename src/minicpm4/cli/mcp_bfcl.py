"""``minicpm4 mcp bfcl``: the Berkeley Function Calling Leaderboard's offline categories of one turn."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.asked_model import EndpointOption, HeldOption, asked_model
from minicpm4.cli.eval_shares import counted, told_cut
from minicpm4.cli.kept_work import KeepOption, MinutesOption, deadline, tell_left
from minicpm4.cli.options import DEFAULT_MODEL, EngineFlags, ModelOption, check_outputs, expand, write_figures
from minicpm4.cli.sampling import SamplingFlags
from minicpm4.cli.terminal import one_line, progress_or_lines, show, table
from minicpm4.config.strict import check_choice, check_optional_integer

if TYPE_CHECKING:
    from minicpm4.agents.mcp.bfcl.scoring import Part


@expand
def bfcl(
    line: typer.Context,
    category: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Ask this category alone; repeatable. Default: all that are here."),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    endpoint: EndpointOption = None,
    most: Annotated[
        int | None,
        typer.Option(metavar="N", help="Ask the first N entries of each category; no averages then."),
    ] = None,
    held: HeldOption = None,
    minutes: MinutesOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Scores and verdicts, as JSON.")
    ] = None,
    *,
    keep: KeepOption,
    engine: EngineFlags,
    sampling: SamplingFlags,
) -> None:
    """Score a model on BFCL v4's offline categories of one turn, by bfcl-eval's own checkers.

    They are installed in an environment of their own. Categories of several turns, of memory and of searches
    of the web are not here; the weights of the others are renormalised.
    """
    from minicpm4.agents.mcp.bfcl import running, scoring
    from minicpm4.evals.asking import count_cut
    from minicpm4.evals.results import FIELD
    from minicpm4.files import Kept

    for name in category or ():
        check_choice("--category", name, scoring.CATEGORIES)
    check_optional_integer("--most", most, 1, 10_000)
    check_outputs({"--output": output}, [model])
    asked = asked_model(line, model, endpoint, engine, sampling)
    hold, until = asked.held(held), deadline(minutes)
    print(f"note: the checkers are {running.BFCL.packages[0]}", file=sys.stderr)
    every = running.read_entries(category or scoring.CATEGORIES)
    entries = running.first_of(every, most)
    speaker = asked.load(hold=hold)
    about = {"version": 2, "kind": "bfcl", **asked.about(speaker), "held": hold}
    about["package"] = running.BFCL.packages[0]
    kept = Kept(keep, about)
    with progress_or_lines("asking", "entries") as progress:
        tell = None if progress is None else lambda done: progress(done, len(entries))
        found = asyncio.run(running.answers(speaker, entries, kept, until=until, told=tell))
    verdicts = running.check(found)
    sizes = Counter(one["category"] for one in every)
    scored = scoring.shares([(one["category"], verdicts[one["id"]]["valid"]) for one in found], sizes)
    cuts = [one["cut"] for one in found]
    if output is not None:
        made = {
            name: {"right": one.right, "asked": one.asked, "entries": one.entries}
            for name, one in scored.items()
        }
        calls = [{**one, **verdicts[one["id"]]} for one in found]
        report = {**about, "most": most, "categories": made, "cut": count_cut(cuts), "answers": calls}
        if found:
            right = {one["id"]: float(verdicts[one["id"]]["valid"]) for one in found}
            settings = [hold, about["package"]]
            of = asked.result(
                speaker, kind="tools", tasks=entries, settings=settings, items=right, cut=count_cut(cuts)
            )
            report[FIELD] = [of.as_dict()]
        write_figures(output, report)
    _show(scored, _by_category(found))
    refused = [one["refused"] for one in found if "refused" in one]
    if refused:
        told = f"note: {len(refused)} of {len(found)} entries could not be asked, and are wrong: {refused[0]}"
        print(one_line(told), file=sys.stderr)
    print(told_cut(cuts, asked.limit))
    tell_left(len(entries) - len(found), "entries")


def _by_category(found: list[dict[str, Any]]) -> dict[str, list[bool | None]]:
    """Whether answers were cut."""
    cuts: dict[str, list[bool | None]] = {}
    for one in found:
        cuts.setdefault(one["category"], []).append(one["cut"])
    return cuts


def _show(scored: dict[str, Part], cuts: dict[str, list[bool | None]]) -> None:
    from minicpm4.agents.mcp.bfcl import scoring

    made = table("category", "asked", "right", "cut", left=1)
    for name, one in scored.items():
        count = f"{one.asked}" if one.whole else f"{one.asked} of {one.entries}"
        made.add_row(name, count, f"{100 * one.share:.1f}", counted(cuts[name]))
    averages: dict[str, Any] = scoring.parts(scored)
    for name, share in averages.items():
        made.add_row(f"average, {name}", "", f"{100 * share:.1f}", "")
    if (whole := scoring.whole(averages)) is not None:
        made.add_row("average, weights renormalised", "", f"{100 * whole:.1f}", "")
    show(made)
    if not all(one.whole for one in scored.values()):
        print("There is no average over categories that were asked in part.")
    left_out = ", ".join(f"{name} ({weight})" for name, weight in scoring.LEFT_OUT.items())
    print(f"BFCL v4's {left_out} are not here: this is no score of its leaderboard.")
