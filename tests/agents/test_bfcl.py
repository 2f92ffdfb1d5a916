"""BFCL: its averages by hand, what a model is asked, and its own checkers (`make test-mcp` installs them)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minicpm4.agents.mcp.bfcl import running
from minicpm4.agents.mcp.bfcl.running import BFCL, answers, check, read_entries
from minicpm4.agents.mcp.bfcl.scoring import CATEGORIES, LIVE, NON_LIVE, SIMPLE, parts, shares, whole
from minicpm4.agents.mcp.install import install, install_steps, program_of
from minicpm4.errors import ToolServerError, UnsupportedError
from minicpm4.files import Kept
from tests.agents.test_agent import hermes, scripted
from tests.agents.test_evaluate import ADD
from tests.cli.conftest import Result, Script, minicpm, script

Run = Callable[..., Result]
__all__ = ["minicpm", "script"]


def test_averages_are_those_computed_by_hand() -> None:
    right = {
        "simple_python": 1.0,
        "simple_java": 0.5,
        "simple_javascript": 0.0,  # a mean of 0.5
        "multiple": 1.0,
        "parallel": 0.5,
        "parallel_multiple": 0.0,  # with it: 0.5
        "live_simple": 1.0,
        "live_multiple": 0.0,
        "live_parallel": 0.5,
        "live_parallel_multiple": 0.0,
        "irrelevance": 1.0,
        "live_irrelevance": 0.5,
        "live_relevance": 1.0,
    }
    assert right.keys() == {*CATEGORIES}
    verdicts = [(name, i < 2 * share) for name, share in right.items() for i in range(2)]
    entries = {"live_simple": 6, "live_multiple": 2, "live_parallel": 4, "live_parallel_multiple": 4}
    averages = parts(shares(verdicts, entries))
    assert averages == {"non-live": 0.5, "live": (6 + 2) / 16, "irrelevance": 0.75}
    assert whole(averages) == pytest.approx((0.5 + 0.5 + 0.75) / 3)
    some = shares([one for one in verdicts if one[0] in (*SIMPLE, *NON_LIVE)], {})
    assert parts(some) == {"non-live": 0.5} and whole(parts(some)) is None
    assert parts(shares([(LIVE[0], True)], {})) == {}, (
        "a part of which something was not asked has no average"
    )


ENTRY = {
    "id": "a_0",
    "category": "simple_python",
    "messages": [{"role": "user", "content": "?"}],
    "tools": [ADD],
}


def test_answers_are_in_its_form_and_kept(tmp_path: Path) -> None:
    kept = Kept(tmp_path, {"kind": "test"})
    entries = [ENTRY, {**ENTRY, "id": "a_1"}]
    model, _ = scripted(hermes("sums__add", a=1, b=2) + hermes("sums__add", a=3, b=4), "None of these.")
    found = asyncio.run(answers(model, entries, kept))
    assert [one["calls"] for one in found] == [
        [{"sums__add": {"a": 1, "b": 2}}, {"sums__add": {"a": 3, "b": 4}}],
        [],
    ]
    model, engine = scripted("unasked")
    assert asyncio.run(answers(model, entries, kept, until=0.0)) == found and engine.prompts == []


def test_its_packages_come_without_what_they_would_bring() -> None:
    assert "--no-deps" in install_steps(BFCL)[1] and "bfcl-eval==2026.3.23" in BFCL.packages


def test_the_command_tells_what_is_not_there(
    tmp_path: Path, minicpm: Run, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entries(categories: Any, most: int | None = None) -> list[dict[str, Any]]:
        return [{**ENTRY, "category": name, "id": f"{name}_0"} for name in categories]

    monkeypatch.setattr(running, "read_entries", entries)
    monkeypatch.setattr(running, "check", lambda found: {one["id"]: {**one, "valid": True} for one in found})
    script.answers = ["x"] * 20
    output = tmp_path / "o.json"
    done = minicpm("mcp", "bfcl", f"--keep={tmp_path / 'k'}", f"--output={output}")
    assert done.code == 0, done.err
    assert "average, weights renormalised" in done.out and "several turns (30), agentic (40)" in done.out
    assert json.loads(output.read_text())["categories"]["live_simple"] == {"right": 1, "asked": 1}
    some = minicpm("mcp", "bfcl", f"--keep={tmp_path / 'k'}", "--category=parallel", "--free")
    assert some.code == 2 and "was begun with held = True" in some.err
    wrong = minicpm("mcp", "bfcl", f"--keep={tmp_path / 'k'}", "--category=parallels")
    assert wrong.code == 2 and "did you mean 'parallel'?" in wrong.err


def plain(value: Any) -> Any:
    """One of the values that BFCL takes for right."""
    if isinstance(value, dict):
        given = {key: one[0] if isinstance(one, list) and one else one for key, one in value.items()}
        return {key: plain(one) for key, one in given.items() if one != ""}
    return [plain(one) for one in value] if isinstance(value, list) else value


@pytest.mark.servers
@pytest.mark.timeout(1800)
def test_its_own_checkers_take_right_answers_and_no_wrong_ones() -> None:
    try:
        install(BFCL)
    except (ToolServerError, UnsupportedError, OSError) as error:
        pytest.skip(f"bfcl-eval: {error}")
    (folder,) = program_of(BFCL).parents[1].glob("lib/*/site-packages/bfcl_eval/data/possible_answer")
    entries = {one["id"]: one for one in read_entries([*SIMPLE[:1], *NON_LIVE, "irrelevance"])}
    right = []
    for category in (SIMPLE[0], *NON_LIVE):
        for line in (folder / f"BFCL_v4_{category}.json").read_text().splitlines():
            truth = json.loads(line)
            calls = [
                {name.replace(".", "_"): plain(given) for name, given in one.items()}
                for one in truth["ground_truth"]
            ]
            right.append({"id": truth["id"], "category": category, "calls": calls})
    quiet = [one for one in entries.values() if one["category"] == "irrelevance"]
    silent = [{"id": one["id"], "category": "irrelevance", "calls": []} for one in quiet]
    loud = [{**one, "calls": [{"x": {}}]} for one in silent]
    found = check([*right, *silent])
    assert sum(one["valid"] for one in found.values()) >= 0.99 * len(found)
    assert not any(one["valid"] for one in check([{**one, "calls": []} for one in right] + loud).values())
    names = {tool["function"]["name"] for one in entries.values() for tool in one["tools"]}
    assert not any("." in name for name in names)
