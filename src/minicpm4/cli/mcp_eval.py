"""``minicpm4 mcp eval``: how well a model calls tools, server by server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.asked_model import EndpointOption, HeldOption, asked_model
from minicpm4.cli.eval_shares import told_cut
from minicpm4.cli.kept_work import KeepIfOption, MinutesOption, deadline, tell_left
from minicpm4.cli.options import DEFAULT_MODEL, EngineFlags, ModelOption, check_outputs, expand, write_figures
from minicpm4.cli.sampling import SamplingFlags
from minicpm4.cli.terminal import one_line, progress_or_lines, show, table
from minicpm4.config.strict import check_integer, require

if TYPE_CHECKING:
    from minicpm4.agents.mcp.evaluate import Mark, Sample, Scores, Setting
    from minicpm4.agents.mcp.models import Model

SWEPT = "5,20,50,fit"
FIT_TOKENS = 24576  # of a prompt, where the context has them


@expand
def evaluate(
    line: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Conversations with calls: `mcp export --to training`."),
    ],
    model: ModelOption = DEFAULT_MODEL,
    endpoint: EndpointOption = None,
    offer: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Offer N of all tools of the file, the right ones among them; fit: as many as are sure to "
            f"fit in {FIT_TOKENS:,} tokens, or the context. With --sweep: several, as {SWEPT}.",
        ),
    ] = None,
    retrieve: Annotated[
        bool, typer.Option("--retrieve", help="With --offer: those that a search finds, right or not.")
    ] = False,
    held: HeldOption = None,
    must_call: Annotated[bool, typer.Option("--must-call", help="Every answer has to be a call.")] = False,
    more: Annotated[
        Path | None,
        typer.Option(
            "--pool",
            metavar="FILE",
            help="With --offer: further tools, as `mcp tools --json` and `mcp tasks --gold` write them.",
        ),
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="Every --offer, drawn and searched for, with calls held and free."),
    ] = False,
    keep: KeepIfOption = None,
    minutes: MinutesOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Scores and every call, as JSON.")
    ] = None,
    *,
    engine: EngineFlags,
    sampling: SamplingFlags,
) -> None:
    """Score a model's calls: function, names of parameters, values; the right previous steps are given.

    Calls are held to the tools' schemas where the model is loaded here. What could not be asked for, as where
    a prompt does not fit, is told of and in no share.
    """
    from minicpm4.agents.mcp.evaluate import pool_of, read_pool, read_samples
    from minicpm4.files import Kept

    asked = asked_model(line, model, endpoint, engine, sampling)
    counts = _counts(offer or (SWEPT if sweep else None))
    require(len(counts) == 1 or sweep, "--offer has several numbers", "give --sweep, or one")
    require(counts != [None] or not retrieve, "--retrieve chooses what is offered", "give --offer N")
    tried = sweep and (retrieve or held is not None)
    require(not tried, "--sweep tries both", "leave out --retrieve, --held and --free")
    forced = "--sweep has free calls, which nothing forces"
    require(not (sweep and must_call), forced, "leave out --must-call")
    require("fit" not in counts or endpoint is None, "fit needs the model here", "give numbers")
    require(held is not False or not must_call, "--must-call needs calls that are held", "leave out --free")
    hold = asked.held(held)
    check_outputs({"--output": output}, [model, file, *([] if more is None else [more])])
    until = deadline(minutes)
    samples = read_samples(file)
    pool = pool_of(samples, read_pool(more) if more is not None else ())
    speaker = asked.load(hold=hold)
    about = asked.about(speaker)
    kept = Kept(keep, {"version": 2, "kind": "eval", **about}) if keep is not None else None
    sizes = [_fitting(speaker, samples, pool) if isinstance(one, str) else one for one in counts]
    held_ways = (True, False) if sweep and hold else (hold,)
    ways = [(search, way) for search in ((False, True) if sweep else (retrieve,)) for way in held_ways]
    settings = _settings(sizes, ways, must_call)
    found = _marks(speaker, samples, settings, pool, kept, until)
    if output is not None:
        made = [_told(setting, marks) for setting, marks in found.items()]
        write_figures(output, {**about, **(made[0] if not sweep else {"settings": made})})
    _show_all(found, samples) if sweep else _show_servers(found[settings[0]])
    every = [one for marks in found.values() for one in marks]
    _tell_refused(every)
    print(told_cut([one.cut for one in every], asked.limit, "answers to calls that were wanted"))
    whole = sum(len(one.calls) for one in samples)
    undone = sum(len(found.get(one, [])) < whole for one in settings)
    tell_left(undone, f"of {len(settings)} settings", kept=kept is not None)


def _settings(sizes: list[int | None], ways: list[tuple[bool, bool]], must_call: bool) -> list[Setting]:
    from minicpm4.agents.mcp.evaluate import Setting

    return [
        Setting(count=size, retrieve=search, held=hold, must_call=must_call)
        for size in sizes
        for search, hold in ways
    ]


def _tell_refused(marks: list[Mark]) -> None:
    why = [one.refused for one in marks if one.refused]
    if why:
        told = f"note: {len(why)} of {len(marks)} calls could not be asked for, and are in no share: {why[0]}"
        print(one_line(told), file=sys.stderr)


def _counts(offer: str | None) -> list[int | str | None]:
    if offer is None:
        return [None]
    made: list[int | str | None] = []
    for one in offer.split(","):
        word = one.strip()
        require(word == "fit" or word.isdecimal(), f"--offer {word!r:.40} is no number", "as in 5,20,50,fit")
        if word != "fit":
            check_integer("--offer", int(word), 1, 512)
        made.append(word if word == "fit" else int(word))
    return made


def _fitting(model: Model, samples: list[Sample], pool: Any) -> int:
    from minicpm4.agents.mcp.evaluate import fitting
    from minicpm4.agents.mcp.models import Local

    assert isinstance(model, Local)
    budget = min(FIT_TOKENS, model.llm.limits.context - (model.params.max_tokens or 0))
    return fitting(model.llm, samples, budget, pool)


def _marks(
    model: Model, samples: list[Sample], settings: list[Setting], pool: Any, kept: Any, until: float
) -> dict[Setting, list[Mark]]:
    """Of each setting in turn."""
    from minicpm4.agents.mcp.evaluate import evaluate

    found: dict[Setting, list[Mark]] = {}
    with progress_or_lines("evaluating", "answers") as progress:

        def told(done: int) -> None:
            if progress is not None:
                progress((len(found)) * len(samples) + done, len(settings) * len(samples))

        async def each() -> None:
            for one in settings:
                found[one] = await evaluate(model, samples, one, pool=pool, kept=kept, until=until, told=told)

        asyncio.run(each())
    return found


def _show_servers(marks: list[Mark]) -> None:
    scores, whole = _scores(marks)
    made = table("server", "calls", "function", "parameters", "values", left=1)
    for name, score in [*scores.items(), ("all calls", whole)]:
        made.add_row(name, str(score.calls), *_percent(score))
    show(made)


def _show_all(found: dict[Setting, list[Mark]], samples: list[Sample]) -> None:
    from minicpm4.agents.mcp.evaluate import score_of

    whole = sum(len(one.calls) for one in samples)
    made = table("tools", "chosen", "calls are", "calls", "function", "parameters", "values", left=3)
    for setting, marks in found.items():
        score = score_of(marks)
        count = f"{score.calls}" if score.calls == whole else f"{score.calls} of {whole}"
        how = "by a search" if setting.retrieve else "drawn, right ones in"
        made.add_row(str(setting.count), how, "held" if setting.held else "free", count, *_percent(score))
    show(made)


def _scores(marks: list[Mark]) -> tuple[dict[str, Scores], Scores]:
    """Of each server, and of all."""
    from minicpm4.agents.mcp.evaluate import score_of

    by_server: dict[str, list[Mark]] = {}
    for mark in marks:
        by_server.setdefault(mark.server, []).append(mark)
    return {name: score_of(some) for name, some in sorted(by_server.items())}, score_of(marks)


def _percent(score: Scores) -> list[str]:
    shares = (score.function, score.names, score.values)
    return [f"{100 * share:.1f}" if score.calls else "" for share in shares]


def _told(setting: Setting, marks: list[Mark]) -> dict[str, Any]:
    scores, whole = _scores(marks)
    shares = ("calls", "function", "parameters", "values")
    asked = {"offer": setting.count, "retrieve": setting.retrieve, "held": setting.held}
    return {
        **asked,
        "must_call": setting.must_call,
        "scores": {
            name: dict(zip(shares, (one.calls, one.function, one.names, one.values), strict=True))
            for name, one in [*scores.items(), ("all", whole)]
        },
        "calls": [*map(_call, marks)],
    }


def _call(mark: Mark) -> dict[str, Any]:
    told: dict[str, Any] = {"server": mark.server, "wanted": list(mark.wanted)}
    told["given"] = mark.given and list(mark.given)
    if mark.refused:
        return {**told, "refused": mark.refused}
    told["cut"] = mark.cut
    return {**told, "function": mark.function, "parameters": mark.names, "values": mark.values}
