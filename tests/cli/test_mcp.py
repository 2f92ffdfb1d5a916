"""``minicpm4 mcp``: servers and tools from the command line, each asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from minicpm4.agents.mcp.asking import Field, Form, May
from minicpm4.cli.asking import Terminal, shown
from tests.agents.servers import HERE
from tests.cli.conftest import Result

Run = Callable[..., Result]
CALL = ("call", "sums.add", '{"a": 2, "b": 3}')


@pytest.fixture
def mcp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minicpm: Run) -> Run:
    """Run ``minicpm4 mcp`` with two servers, whose starts and calls are noted in ``log``."""
    monkeypatch.setenv("MINICPM4_HOME", str(tmp_path / "home"))
    server = {
        "command": sys.executable,
        "args": [str(HERE / "made_server.py"), "made", str(tmp_path / "log")],
    }
    other = {**server, "env": {"TOKEN": "tok-12345"}}
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"sums": server, "more": other}}))

    def run(name: str, *words: str, **options: object) -> Result:
        config = [] if name == "allowed" else [f"--config={file}"]
        return minicpm("mcp", name, *words, *config, **options)

    return run


def noted(tmp_path: Path) -> list[str]:
    log = tmp_path / "log"
    return log.read_text().splitlines() if log.exists() else []


def test_nothing_runs_where_nobody_is_to_be_asked(tmp_path: Path, mcp: Run) -> None:
    done = mcp(*CALL)
    assert done.code == 2 and done.out == ""
    assert "not allowed" in done.err and "--allow" in done.err
    assert noted(tmp_path) == []


def test_a_tool_is_called_once_it_is_allowed(tmp_path: Path, mcp: Run) -> None:
    done = mcp(*CALL, stdin="y\nwhat?\ny\n", terminal=True)
    assert (done.code, done.out) == (0, "5\n")
    assert "made_server.py made" in done.err and "a = 2" in done.err
    assert [line for line in noted(tmp_path) if line != "start"] == ['call add {"a": 2, "b": 3}']
    assert mcp(*CALL, stdin="y\nn\n", terminal=True).code == 2, "once is once"


def test_always_is_kept_listed_and_taken_back(tmp_path: Path, mcp: Run) -> None:
    assert mcp(*CALL, stdin="a\na\n", terminal=True).code == 0
    assert mcp(*CALL).out == "5\n"
    listed = mcp("allowed").out
    assert "sums" in listed and "add" in listed and "(to start)" in listed
    assert mcp("allowed", "--forget", "sums.add").out == "took back 1\n"
    assert mcp(*CALL).code == 2
    refused = mcp("allowed", "--forget", "sums.add")
    assert refused.code == 2 and "nothing is allowed" in refused.err


def test_names_given_beforehand_are_not_asked_for(mcp: Run) -> None:
    assert mcp(*CALL, "--allow=sums", "--allow=sums.add").out == "5\n"
    refused = mcp(*CALL, "--allow=sum")
    assert refused.code == 2 and "did you mean 'sums'" in refused.err


def test_a_dry_run_tells_and_starts_nothing(tmp_path: Path, mcp: Run) -> None:
    done = mcp(*CALL, "--dry-run")
    assert done.code == 0 and noted(tmp_path) == []
    run, call = [line for line in done.out.splitlines() if "sums" in line]
    assert run.startswith("run") and "yes" in run and "made_server.py" in run
    assert call.startswith("call") and "yes" in call and '{"a": 2, "b": 3}' in call


def test_servers_and_tools_are_listed(tmp_path: Path, mcp: Run) -> None:
    done = mcp("servers", "--allow=sums", "--allow=more")
    assert done.out.count("ready") == 2 and "2025-06-18" in done.out
    assert "tok-12345" not in done.out + done.err
    listed = mcp("tools", "--allow=sums", "--allow=more")
    assert "sums.add" in listed.out and "asks" in listed.out and "a, b" in listed.out
    assert "more.add: its name looks like sums.add" in listed.err
    (found,) = json.loads(mcp("search", "two numbers", "--json", "-n1", "--allow=sums", "--server=sums").out)
    assert found["name"] == "sums__add"


def test_wrong_words_are_refused_before_anything_starts(tmp_path: Path, mcp: Run) -> None:
    for words, told in (
        (("call", "sums.add", "[1]"), "no JSON object"),
        (("call", "sums.add", "{"), "not JSON"),
        (("tools", "--server=nope"), "there is no server nope"),
    ):
        done = mcp(*words)
        assert done.code == 2 and told in done.err
    assert noted(tmp_path) == []
    unknown = mcp("call", "sums.sub", "--allow=sums")
    assert unknown.code == 2 and "did you mean 'sums.add'" in unknown.err


def test_a_missing_configuration_says_how_to_write_one(tmp_path: Path, minicpm: Run) -> None:
    done = minicpm("mcp", "tools", f"--config={tmp_path / 'none.json'}")
    assert done.code == 2 and "mcpServers" in done.err


def answers(*lines: str) -> Terminal:
    left = list(lines)
    return Terminal(lambda _: left.pop(0), interactive=True)


def test_what_strangers_wrote_is_shown_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    may = May(
        what="call",
        server="a",
        tool="add\u202e",
        arguments={"path": "/x\u200b\x1b[2J"},
        details=(("says", "Add.\U000e0041[bold]"),),
        warnings=("look",),
        changed=("schema",),
    )
    assert answers("").may(may) == "no"
    told = capsys.readouterr().err
    assert "add\\u{202e}" in told and "\\u{e0041}[bold]" in told and "! look" in told
    assert "changed since it was allowed: schema" in told
    assert not set(told) & set("\u202e\u200b\x1b\U000e0041")


def test_long_texts_say_how_much_more_there_is() -> None:
    assert "[… 1,000 characters left out …]" in shown("x" * 5000)


def test_a_form_is_filled_in(capsys: pytest.CaptureFixture[str]) -> None:
    form = Form(
        server="a",
        tool="add",
        message="Which?",
        fields=(
            Field(name="n", kind="integer", required=True),
            Field(name="way", kind="string", choices=("up", "down"), required=True),
            Field(name="sure", kind="boolean"),
            Field(name="tags", kind="array"),
        ),
    )
    given = answers("y", "x", "7", "left", "up", "yes", "a, b").tell(form)
    assert given == {"n": 7, "way": "up", "sure": True, "tags": ["a", "b"]}
    assert "no integer" in capsys.readouterr().err
    assert answers("n").tell(form) is None
