"""``minicpm4 mcp eval``: how well a model calls tools, server by server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.mcp_agent import EndpointOption, open_model
from minicpm4.cli.options import DEFAULT_MODEL, EngineFlags, ModelOption, SamplingFlags, check_output, expand
from minicpm4.cli.terminal import progress_or_lines, show, table
from minicpm4.config.strict import check_optional_integer, require
from minicpm4.files import write_json

if TYPE_CHECKING:
    from minicpm4.agents.mcp.evaluate import Mark, Scores


@expand
def evaluate(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Conversations with calls: `mcp export --to training`."),
    ],
    model: ModelOption = DEFAULT_MODEL,
    endpoint: EndpointOption = None,
    offer: Annotated[
        int | None,
        typer.Option(metavar="N", help="Offer N of all tools of the file, the right ones among them."),
    ] = None,
    retrieve: Annotated[
        bool, typer.Option("--retrieve", help="With --offer: those that a search finds, right or not.")
    ] = False,
    held: Annotated[bool, typer.Option("--held/--free", help="Hold calls to the tools' schemas.")] = True,
    must_call: Annotated[bool, typer.Option("--must-call", help="Every answer has to be a call.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Scores and every call, as JSON.")
    ] = None,
    *,
    engine: EngineFlags,
    sampling: SamplingFlags,
) -> None:
    """Score a model's calls: function, names of parameters, values; the right previous steps are given."""
    from minicpm4.agents.mcp.evaluate import evaluate as marks_of
    from minicpm4.agents.mcp.evaluate import read_samples, score_of

    check_optional_integer("--offer", offer, 1, 512)
    require(offer is not None or not retrieve, "--retrieve chooses what is offered", "give --offer N")
    check_output("--output", output)
    require(held or not must_call, "--must-call needs calls that are held", "leave out --free")
    samples = read_samples(file)
    speaker = open_model(model, endpoint, engine, sampling, grammar=held)
    with progress_or_lines("evaluating", "answers") as progress:

        def told(done: int) -> None:
            if progress is not None:
                progress(done, len(samples))

        marks = asyncio.run(
            marks_of(speaker, samples, count=offer, retrieve=retrieve, must_call=must_call, told=told)
        )
    by_server: dict[str, list[Mark]] = {}
    for mark in marks:
        by_server.setdefault(mark.server, []).append(mark)
    scores = {name: score_of(some) for name, some in sorted(by_server.items())}
    whole = score_of(marks)
    made = table("server", "calls", "function", "parameters", "values", left=1)
    for name, score in [*scores.items(), ("all calls", whole)]:
        made.add_row(name, str(score.calls), *_percent(score))
    show(made)
    if output is not None:
        asked = {"offer": offer, "retrieve": retrieve, "held": held, "must_call": must_call}
        found = {"scores": _all(scores, whole), "calls": [*map(_call, marks)]}
        write_json(output, {"model": model, **asked, **found})


def _percent(score: Scores) -> list[str]:
    return [f"{100 * share:.1f}" for share in (score.function, score.names, score.values)]


def _all(scores: dict[str, Scores], whole: Scores) -> dict[str, Any]:
    return {
        name: {"calls": one.calls, "function": one.function, "parameters": one.names, "values": one.values}
        for name, one in [*scores.items(), ("all", whole)]
    }


def _call(mark: Mark) -> dict[str, Any]:
    told = {"server": mark.server, "wanted": list(mark.wanted), "given": mark.given and list(mark.given)}
    return {**told, "function": mark.function, "parameters": mark.names, "values": mark.values}
