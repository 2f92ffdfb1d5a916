"""``minicpm4 mcp run`` and ``export``: a model that works with tools, and what it did."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minicpm4.cli.asked_model import EndpointOption, asked_model
from minicpm4.cli.asking import shown
from minicpm4.cli.mcp_servers import ServerFlags, print_plan, tell_troubles
from minicpm4.cli.options import DEFAULT_MODEL, EngineFlags, ModelOption, check_outputs, expand
from minicpm4.cli.sampling import SamplingFlags
from minicpm4.cli.terminal import write_text
from minicpm4.config.strict import check_choice, require
from minicpm4.errors import EngineError, shortened
from minicpm4.files import write_file

if TYPE_CHECKING:
    from minicpm4.agents.mcp.transcript import Step

MAX_LINE = 300  # characters of a result that a line shows
WHY = {
    "steps": "it was not done in {} answers",
    "circles": "it made the same call over and over",
    "cut": "its answer was cut at --max-tokens",
}


@expand
def run(
    line: typer.Context,
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="What is to be done; none: go on with --resume.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    endpoint: EndpointOption = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what is done here, after each step.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on from what --save wrote (and write it on).")
    ] = None,
    max_steps: Annotated[int, typer.Option(help="Answers of the model at most.")] = 12,
    most_tools: Annotated[
        int, typer.Option(help="Tools offered at a time: of more, those that the task is about.")
    ] = 20,
    must_call: Annotated[
        bool, typer.Option("--must-call", help="The first answer has to be a call.")
    ] = False,
    inspected: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Offer only tools that passed in this report of `mcp inspect`."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be started and asked; do nothing.")
    ] = False,
    *,
    flags: ServerFlags,
    engine: EngineFlags,
    sampling: SamplingFlags,
) -> None:
    """Do a task with the servers' tools, step after step; each call is asked for. The answer is printed."""
    from minicpm4.agents.mcp.agent import Agent, AgentOptions
    from minicpm4.agents.mcp.inspection import passed, read_report
    from minicpm4.agents.mcp.transcript import Transcript

    require(task is not None or resume is not None, "there is no task", "say what is to be done, or --resume")
    options = AgentOptions(max_steps=max_steps, most_tools=most_tools, must_call=must_call)
    asked = asked_model(line, model, endpoint, engine, sampling)
    flags.read(tell=False)
    done = Transcript.load(resume) if resume is not None else None
    report = read_report(inspected) if inspected is not None else None
    if dry_run:
        print_plan(flags)
        print(f"then {shown(model)} is asked, at most {max_steps} times; each call that is not allowed asks")
        return
    speaker = asked.load()
    with flags.toolbox() as (blocking, box):
        blocking.run(box.refresh())
        tell_troubles(box)
        if report is not None:
            box.tools = passed(box.tools, box, report)
        require(bool(box.tools), "there is no tool to work with", "see: minicpm4 mcp servers")
        file = save or resume
        agent = Agent(speaker, box, options, transcript=done, file=file, told=tell_step)
        transcript = blocking.run(agent.run(task))
    if transcript.ended != "answered":
        kept = f"; go on with --resume {file}" if file is not None else ""
        raise EngineError(f"the task was not done: {WHY[transcript.ended].format(max_steps)}{kept}")
    write_text(transcript.answer + "\n", sys.stdout)


def tell_step(step: Step) -> None:
    """One line on standard error for a call, and one for what it said."""
    given = json.dumps(step.arguments, ensure_ascii=False, default=str)
    print(f"→ {shown(step.tool)} {shown(given)}", file=sys.stderr)
    text = shortened(" ".join(step.text.split()), MAX_LINE)
    state = "✗" if step.failed else "←"
    print(f"{state} {shown(text)}", file=sys.stderr)


def export(
    transcript: Annotated[Path, typer.Argument(metavar="FILE", help="What `mcp run --save` wrote.")],
    to: Annotated[
        str, typer.Option(help="markdown, or training: a line of messages and tools for `minicpm4 train`.")
    ] = "markdown",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Default: standard output."),
    ] = None,
) -> None:
    """Turn what was done into text."""
    from minicpm4.agents.mcp.transcript import Transcript

    check_choice("--to", to, ("markdown", "training"))
    check_outputs({"--output": output}, [transcript])
    done = Transcript.load(transcript)
    text = done.as_markdown() if to == "markdown" else done.as_training()
    if output is None:
        write_text(text, sys.stdout)
    else:
        write_file(output, text)
