"""Tools are offered only where ten queries got ten responses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from minicpm4.agents.mcp.inspection import (
    Inspection,
    Trial,
    inspect_tool,
    page_of,
    passed,
    read_report,
    write_report,
)
from minicpm4.errors import ConfigError
from tests.agents.servers import Person, boxed, made
from tests.agents.test_agent import hermes, scripted
from tests.cli.conftest import Result, Script, minicpm, script
from tests.cli.test_mcp_agent import config

Run = Callable[..., Result]
__all__ = ["config", "minicpm", "script"]
QUERIES = [f"What is {i} plus one, please?" for i in range(3)]
CALLS = [hermes("made__add", a=i, b=1) for i in range(3)]


def inspected(*answers: str, manner: str = "made", person: Person | None = None) -> Inspection:
    model, _ = scripted(*answers)

    async def go() -> Inspection:
        async with boxed([made(manner)], person or Person("session")) as box:
            (tool,) = [one for one in box.tools.values() if one.name == "add"]
            return await inspect_tool(model, box, tool, count=3)

    return asyncio.run(go())


def test_a_tool_that_always_responds_passes() -> None:
    found = inspected(json.dumps(QUERIES), *CALLS)
    assert found.passed and [trial.query for trial in found.trials] == QUERIES
    assert [(trial.arguments, trial.text) for trial in found.trials] == [
        ({"a": i, "b": 1}, str(i + 1)) for i in range(3)
    ]


def test_a_tool_that_fails_once_does_not(tmp_path: Path) -> None:
    refused = inspected(json.dumps(QUERIES), *CALLS, person=Person("session", "once", "no"))
    assert not refused.passed and [trial.responded for trial in refused.trials] == [True, False, False]


def test_too_few_queries_are_none() -> None:
    found = Inspection(server="a", tool="b", key="k", trials=(Trial(query="?", responded=True),), wanted=2)
    assert not found.passed


def test_only_what_passed_is_offered_and_only_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    good = inspected(json.dumps(QUERIES), *CALLS)
    write_report(file, "scripted", [good])
    assert read_report(file) == [good]

    async def names(manner: str) -> list[str]:
        async with boxed([made(manner)], Person("session")) as box:
            return [*passed(box.tools, box, read_report(file))]

    assert asyncio.run(names("made")) == ["made__add"]
    assert asyncio.run(names("hostileinjects")) == [], (
        "another program's tool of the same name is another tool"
    )


PARTS = '{"version": 1, "tools": [{"server": "s", "tool": "t", "key": %s, "trials": [%s]}]}'


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"version": 1}',
        '{"version": 1, "tools": {}}',
        '{"version": 1, "tools": [{"x": 1}]}',
        PARTS % ("[]", ""),
        PARTS % ('"k"', '{"query": 5}'),
        PARTS % ('"k"', '{"query": "?", "text": null}'),
        PARTS % ('"k"', '{"query": "?", "responded": "yes"}'),
        PARTS % ('"k"', '{"query": "?", "arguments": [1]}'),
    ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"r\.json"):
        read_report(file)


def test_the_page_shows_what_strangers_wrote_as_text() -> None:
    trial = Trial(query="<script>x</script>", arguments={"a": "\u202e"}, text="<b>5</b>", responded=True)
    page = page_of("m", [Inspection(server="a", tool="<i>", key="k", trials=(trial,), wanted=1)])
    assert (
        "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;5" in page and "&lt;i&gt;" in page
    )
    assert "\u202e" not in page and "1 of 1 tools passed" in page


def test_the_command_writes_report_and_page_and_run_offers_what_passed(
    tmp_path: Path, minicpm: Run, script: Script, config: Path
) -> None:
    # A template that shows no format of calls: those that have to be are plain JSON.
    calls = [json.dumps({"name": "sums__add", "arguments": {"a": i, "b": 1}}) for i in range(3)]
    script.answers = [json.dumps(QUERIES), *calls]
    report = tmp_path / "report.json"
    allowed = (f"--config={config}", "--allow=sums", "--allow=sums.add")
    done = minicpm("mcp", "inspect", *allowed, "--queries=3", f"--output={report}")
    assert done.code == 0 and "1 of 1 tools passed" in done.out
    assert "sums.add" in report.with_suffix(".html").read_text()
    script.answers = ["Five."]
    run = ("mcp", "run", "2 + 3?", *allowed, f"--inspected={report}")
    assert minicpm(*run).out == "Five.\n"
    report.write_text('{"version": 1, "tools": []}')
    refused = minicpm(*run)
    assert refused.code == 2 and "no tool" in refused.err
