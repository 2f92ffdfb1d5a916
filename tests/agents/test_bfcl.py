"""BFCL: its averages by hand, what a model is asked, and its own checkers (`make test-mcp` installs them)."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minicpm4.agents.mcp.bfcl import running
from minicpm4.agents.mcp.bfcl.running import BFCL, answers, check, first_of, read_entries
from minicpm4.agents.mcp.bfcl.scoring import CATEGORIES, NON_LIVE, SIMPLE, parts, shares, whole
from minicpm4.agents.mcp.install import install, install_steps, program_of
from minicpm4.errors import ToolServerError, UnsupportedError
from minicpm4.evals.result_files import read_results
from minicpm4.files import Kept
from tests.agents.test_agent import hermes, scripted
from tests.agents.test_evaluate import ADD
from tests.cli.conftest import Result, Script, minicpm, script

Run = Callable[..., Result]
__all__ = ["minicpm", "script"]


RIGHT = {
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
ENTRIES = dict.fromkeys(CATEGORIES, 2) | {"live_simple": 6, "live_parallel": 4, "live_parallel_multiple": 4}


def test_averages_are_those_computed_by_hand() -> None:
    assert RIGHT.keys() == {*CATEGORIES}
    verdicts = [
        (name, i < ENTRIES[name] * share) for name, share in RIGHT.items() for i in range(ENTRIES[name])
    ]
    averages = parts(shares(verdicts, ENTRIES))
    assert averages == {"non-live": 0.5, "live": (6 + 2) / 16, "irrelevance": 0.75}
    assert whole(averages) == pytest.approx((0.5 + 0.5 + 0.75) / 3)
    some = shares([one for one in verdicts if one[0] in (*SIMPLE, *NON_LIVE)], ENTRIES)
    assert parts(some) == {"non-live": 0.5} and whole(parts(some)) is None
    partly = shares(verdicts[1:], ENTRIES)
    assert not partly[SIMPLE[0]].whole and parts(partly).keys() == {"live", "irrelevance"}, (
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


def test_what_could_not_be_asked_is_wrong_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no call is wanted, too: a checker would take its silence for right."""
    long = {**ENTRY, "id": "a_1", "messages": [{"role": "user", "content": "? " * 20_000}]}
    model, _ = scripted("None.", "None.")
    kept = Kept(tmp_path, {})
    for _ in range(2):
        found = asyncio.run(answers(model, [long, ENTRY], kept))
        assert [(one["id"], "refused" in one) for one in found] == [("a_1", True), ("a_0", False)]
    monkeypatch.setattr(running, "_bridged", lambda _, lines: [{**json.loads(lines), "valid": True}])
    verdicts = check(found)
    assert verdicts["a_0"]["valid"] and not verdicts["a_1"]["valid"]
    assert verdicts["a_1"]["why"].startswith("refused: ")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("[]", "something else than tables with an id"),
        ('{"id": [1], "valid": true}', "something else than tables with an id"),
        ('{"id": "a_0"}', "said nothing of a_0"),
        ('{"id": "b_0", "valid": true}', "said nothing of a_0"),
        ('{"id": "a_0", "valid": "yes"}', "said nothing of a_0"),
    ],
)
def test_verdicts_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch, said: str, told: str) -> None:
    done = subprocess.CompletedProcess([], 0, said + "\n", "")
    monkeypatch.setattr(running.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(ToolServerError, match=told):
        check([{"id": "a_0", "category": "a", "calls": []}])


@pytest.mark.parametrize("change", [{"category": []}, {"messages": None}, {"tools": [1]}, {"tools": {}}])
def test_entries_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    done = subprocess.CompletedProcess([], 0, json.dumps({**ENTRY, **change}) + "\n", "")
    monkeypatch.setattr(running.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(running, "install", lambda _: None)
    with pytest.raises(ToolServerError, match="a_0 has no category, messages and tools"):
        running.read_entries(["a"])


def test_answers_that_the_limit_of_tokens_ended_are_told(tmp_path: Path) -> None:
    model, _ = scripted("word " * 400, hermes("sums__add", a=1, b=2))
    model.params = model.params.changed(max_tokens=200)
    found = asyncio.run(answers(model, [ENTRY, {**ENTRY, "id": "a_1"}], Kept(tmp_path, {})))
    assert [(one["calls"] != [], one["cut"]) for one in found] == [(False, True), (True, False)]


def test_its_packages_come_without_what_they_would_bring() -> None:
    assert "--no-deps" in install_steps(BFCL)[1] and "bfcl-eval==2026.3.23" in BFCL.packages


@pytest.fixture
def set_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two entries of each category, and checkers to which all is right."""

    def entries(categories: Any) -> list[dict[str, Any]]:
        return [{**ENTRY, "category": name, "id": f"{name}_{i}"} for name in categories for i in range(2)]

    monkeypatch.setattr(running, "read_entries", entries)
    monkeypatch.setattr(running, "check", lambda found: {one["id"]: {**one, "valid": True} for one in found})


@pytest.mark.usefixtures("set_of_two")
def test_the_command_tells_what_is_not_there(tmp_path: Path, minicpm: Run, script: Script) -> None:
    words = ("mcp", "bfcl", f"--keep={tmp_path / 'k'}")
    output = tmp_path / "o.json"
    done = minicpm(*words, f"--output={output}")
    assert done.code == 0, done.err
    assert "average, weights renormalised" in done.out and "several turns (30), agentic (40)" in done.out
    report = json.loads(output.read_text())
    assert report["categories"]["live_simple"] == {"right": 2, "asked": 2, "entries": 2}
    assert report["endpoint"] is None and report["held"] is True and report["hash"]
    assert report["cut"] == 0 and f"none of {2 * len(CATEGORIES)} answers was cut" in done.out
    (made,) = read_results(output)
    assert made.kind == "tools" and len(made.items) == 2 * len(CATEGORIES) and made.score[0] == 1.0
    others = ("--free", "--seed=1", "--attention=dense", "--model=other", "--endpoint=http://h/v1")
    for more in (*others, "--stop=x"):
        some = minicpm(*words, "--category=parallel", more)
        assert some.code == 2 and "was begun with" in some.err, more
    wrong = minicpm(*words, "--category=parallels")
    assert wrong.code == 2 and "did you mean 'parallel'?" in wrong.err


@pytest.mark.usefixtures("set_of_two")
def test_there_is_no_average_of_what_is_asked_in_part(tmp_path: Path, minicpm: Run, script: Script) -> None:
    done = minicpm("mcp", "bfcl", f"--keep={tmp_path / 'k'}", "--most=1")
    assert done.code == 0 and "1 of 2" in done.out and "average," not in done.out
    assert "no average over categories that were asked in part" in done.out
    late = minicpm("mcp", "bfcl", f"--keep={tmp_path / 'k'}", "--minutes=1e-9")
    assert late.code == 0 and f"{2 * len(CATEGORIES) - 1} entries are left" in late.err
    assert minicpm("mcp", "bfcl", f"--keep={tmp_path / 'k'}", "--minutes=-1").code == 2
    assert [one["id"] for one in first_of([ENTRY, {**ENTRY, "id": "a_1"}], 1)] == ["a_0"]


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
