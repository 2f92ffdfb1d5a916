"""``minicpm4 mcp inspect``: tools put to the test before a model is offered them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from minicpm4.cli.asked_model import EndpointOption, asked_model
from minicpm4.cli.asking import shown
from minicpm4.cli.mcp_servers import ServerFlags, tell_troubles
from minicpm4.cli.options import DEFAULT_MODEL, EngineFlags, ModelOption, check_outputs, expand
from minicpm4.cli.sampling import SamplingFlags
from minicpm4.config.strict import check_integer, require
from minicpm4.files import write_file


@expand
def inspect(
    line: typer.Context,
    model: ModelOption = DEFAULT_MODEL,
    endpoint: EndpointOption = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The report; beside it a page, as .html.")
    ] = Path("inspection.json"),
    queries: Annotated[int, typer.Option(help="Queries a tool, each of which must get a response.")] = 10,
    tool: Annotated[
        list[str] | None, typer.Option(metavar="SERVER.TOOL", help="Only this tool; repeatable.")
    ] = None,
    *,
    flags: ServerFlags,
    engine: EngineFlags,
    sampling: SamplingFlags,
) -> None:
    """Have a model write queries for each tool, and see whether all get a response. Calls are made, and asked
    for as any: think of what these tools do."""
    from minicpm4.agents.mcp.inspection import inspect_tool, page_of, write_report

    check_integer("--queries", queries, 1, 50)
    require(output.suffix != ".html", f"--output {output} is the page's name", "name the report .json")
    check_outputs({"--output": output}, [model])
    asked = asked_model(line, model, endpoint, engine, sampling)
    flags.read(tell=False)
    speaker = asked.load()
    with flags.toolbox() as (blocking, box):
        blocking.run(box.refresh())
        tell_troubles(box)
        chosen = [box.find(name) for name in tool] if tool else list(box.tools.values())
        require(bool(chosen), "there is no tool to inspect", "see: minicpm4 mcp servers")
        found = []
        for one in chosen:
            found.append(blocking.run(inspect_tool(speaker, box, one, count=queries)))
            write_report(output, speaker.name, found)
            good = sum(trial.responded for trial in found[-1].trials)
            told = f"{one.server}.{one.name}: {good} of {queries} responses {found[-1].why}"
            print(shown(told), file=sys.stderr)
    page = output.with_suffix(".html")
    write_file(page, page_of(speaker.name, found))
    print(f"{sum(one.passed for one in found)} of {len(found)} tools passed: {output}, {page}")
