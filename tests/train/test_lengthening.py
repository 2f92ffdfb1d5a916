"""A run that has ended, or is under way, with more steps: as if it had been planned so, where that can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from minicpm4.errors import ConfigError
from minicpm4.files import CHECKSUMS
from minicpm4.train.check import Given, Start, check
from minicpm4.train.going_on import going_on, way_of
from minicpm4.train.lengthening import decay_starts
from minicpm4.train.metrics import read_metrics
from minicpm4.train.saved import latest, saved
from tests.train.runs import corpus, recipe, runner, stage

FALLING = {"kind": "linear", "steps": 3, "final": 0.1}
FILES = ("model/model.safetensors", "optimiser.safetensors")


def made(steps: int, *more: dict[str, Any], every: int = 2, last: int = 2, **changed: Any) -> Any:
    keep = {"every": every, "last": last}
    return recipe(stage("first", steps=2), stage("main", steps=steps, **changed), *more, checkpoints=keep)


def told(run: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["rate"]) for line in read_metrics(run)]


def weights(run: Path) -> list[bytes]:
    found = latest(run)
    assert found is not None
    return [(found.folder / name).read_bytes() for name in FILES]


@pytest.mark.parametrize("until", [5, 6, 8])
@pytest.mark.parametrize("kind", ["none", "linear"])
@pytest.mark.parametrize("every", [2, 100])
def test_more_steps_are_as_if_they_had_been_planned(
    tmp_path: Path, until: int, kind: str, every: int
) -> None:
    """Of 2 + 6 steps, the last 3 of which may decay, ``until`` are taken; then there are to be 2 + 9."""
    decay = {"decay": FALLING} if kind == "linear" else {}
    data, run, whole = corpus(tmp_path / "data"), tmp_path / "run", tmp_path / "whole"
    runner(made(6, every=every, **decay), run, data).run(until)
    longer = made(9, every=every, **decay)
    given = Given(start=Start(config=None), run=run)
    (note,) = check(longer, given)
    again = runner(longer, run, data)
    after = again.step
    assert after == (5 if kind == "linear" else until)
    assert "'main' has 9 steps now (it had 6)" in note and "as if it had been planned so" in note
    assert f"goes on after step {after}" in note and "not as if" not in note
    again.run()
    runner(longer, whole, data).run()
    assert told(run) == told(whole) and weights(run) == weights(whole)
    state = latest(run).state()  # type: ignore[union-attr]
    asked = {"stage": "main", "steps": [6, 9], "after": after, "as_planned": True}
    assert state["lengthened"] == [asked]
    ended = sorted(folder.name for folder in run.glob("ended-*"))
    later = [step for step in (6, 8) if step <= until] if every == 2 else [until] if until > 5 else []
    assert ended == ([f"ended-{step:09d}" for step in later] if kind == "linear" else [])
    for name in ended:
        assert {line["step"] for line in read_metrics(run / name)} == set(range(1, until + 1))
    assert check(longer, given) == []


@pytest.mark.parametrize("until", [4, 5])
@pytest.mark.parametrize(("old", "new"), [(3, 6), (3, 2), (2, 6)])
def test_a_decay_from_the_first_step_goes_on_from_the_end_of_the_stage_before(
    tmp_path: Path, until: int, old: int, new: int
) -> None:
    """Whichever decays so, the stage as it was (3 steps) or as it is to be (6)."""
    data, run, whole = corpus(tmp_path / "data"), tmp_path / "run", tmp_path / "whole"
    runner(recipe(stage("first", steps=2)), run, data).run()  # knows nothing of the other stage yet
    runner(made(3, decay={**FALLING, "steps": old}, every=100), run, data).run(until)
    longer = made(6, decay={**FALLING, "steps": new}, every=100)
    again = runner(longer, run, data)
    assert again.step == 2
    again.run()
    runner(longer, whole, data).run()
    assert told(run) == told(whole) and weights(run) == weights(whole)
    assert latest(run).state()["lengthened"][0]["as_planned"] is True  # type: ignore[union-attr]


def test_the_stage_before_may_not_change_with_it(tmp_path: Path) -> None:
    runner(made(3, decay=FALLING), tmp_path / "run", corpus(tmp_path / "data")).run()
    other = recipe(stage("first", steps=2, decay={"kind": "linear", "steps": 1}), stage("main", steps=6))
    with pytest.raises(ConfigError, match=r"stages\[0\].decay"):
        going_on(other, tmp_path / "run")


def test_without_a_checkpoint_before_the_decay_it_goes_on_from_the_end_and_says_so(tmp_path: Path) -> None:
    data, run = corpus(tmp_path / "data"), tmp_path / "run"
    runner(made(6, decay=FALLING), run, data).run()
    for one in saved(run):
        if 2 < one.step < 8:
            (one.folder / "state.json").unlink()
    longer = made(12, decay=FALLING)
    (note,) = check(longer, Given(start=Start(config=None), run=run))
    before = told(run)
    again = runner(longer, run, data)
    assert again.step == 8 and not list(run.glob("ended-*"))
    rates = [rate for _, _, rate in before]
    assert f"fallen to {rates[-1]:.3g}, with a rate of 0.01: not as if it had been planned so" in note
    again.run()
    assert told(run)[:8] == before and len(told(run)) == 14
    state = latest(run).state()  # type: ignore[union-attr]
    assert state["lengthened"][0]["as_planned"] is False
    assert 8 in [one.step for one in saved(run)], "what it went on from is kept"


def test_another_decay_alone_is_told_as_such(tmp_path: Path) -> None:
    runner(made(6, decay=FALLING), tmp_path / "run", corpus(tmp_path / "data")).run(4)
    way = way_of(made(6, decay={**FALLING, "steps": 2}), tmp_path / "run")
    assert way is not None
    assert way.note.startswith("stage 'main' has another decay now: it goes on after step 4")


def test_a_further_stage_follows_a_run_that_has_ended(tmp_path: Path) -> None:
    data, run, whole = corpus(tmp_path / "data"), tmp_path / "run", tmp_path / "whole"
    runner(made(4, decay=FALLING), run, data).run()
    longer = made(4, stage("more", steps=3, warmup=1), decay=FALLING)
    assert check(longer, Given(start=Start(config=None), run=run)) == []
    runner(longer, run, data).run()
    runner(longer, whole, data).run()
    assert told(run) == told(whole) and weights(run) == weights(whole)


def test_it_may_be_lengthened_again(tmp_path: Path) -> None:
    data, run, whole = corpus(tmp_path / "data"), tmp_path / "run", tmp_path / "whole"
    for steps in (5, 7, 9):
        runner(made(steps, decay=FALLING, last=1, every=100), run, data).run()
    runner(made(9, decay=FALLING), whole, data).run()
    assert told(run) == told(whole) and weights(run) == weights(whole)
    state = latest(run).state()  # type: ignore[union-attr]
    assert [one["steps"] for one in state["lengthened"]] == [[5, 7], [7, 9]]
    assert sorted(one.name for one in run.glob("ended-*")) == ["ended-000000007", "ended-000000009"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"steps": 3}, r"stages\[1\].steps: 6 -> 3"),
        ({"steps": 9, "rate": 0.02}, r"stages\[1\].rate: 0.01 -> 0.02; stages\[1\].steps: 6 -> 9"),
        ({"steps": 9, "warmup": 3}, r"stages\[1\].warmup: 0 -> 3"),
    ],
)
def test_what_else_has_begun_may_not_change(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    runner(made(6), tmp_path / "run", corpus(tmp_path / "data")).run(6)
    with pytest.raises(ConfigError, match=said) as refused:
        going_on(made(**changed), tmp_path / "run")
    assert "of the last one that has its steps and decay" in str(refused.value)


def test_an_earlier_stage_is_not_lengthened(tmp_path: Path) -> None:
    runner(made(4), tmp_path / "run", corpus(tmp_path / "data")).run(4)
    other = recipe(stage("first", steps=3), stage("main", steps=4))
    with pytest.raises(ConfigError, match=r"stages\[0\].steps: 2 -> 3"):
        going_on(other, tmp_path / "run")


def test_merged_pairs_do_not_go_on(tmp_path: Path) -> None:
    data, run, whole = corpus(tmp_path / "data"), tmp_path / "run", tmp_path / "whole"
    adapter = {"lora": {"rank": 2}}
    runner(made(4, **adapter), run, data).run()
    again = runner(made(6, **adapter), run, data)
    assert again.step == 4  # a checkpoint with pairs
    again.run()
    runner(made(6, **adapter), whole, data).run()
    assert told(run) == told(whole)
    runner(made(4, every=100, last=1, **adapter), tmp_path / "end", data).run()
    with pytest.raises(ConfigError, match=r"its pairs were merged at its end, .* add a further stage"):
        going_on(made(6, every=100, **adapter), tmp_path / "end")


def test_a_state_without_a_recipe_is_told_as_such(tmp_path: Path) -> None:
    runner(made(4), tmp_path / "run", corpus(tmp_path / "data")).run(4)
    found = latest(tmp_path / "run")
    assert found is not None
    (found.folder / "state.json").write_text(json.dumps({"version": 1, "step": 4, "recipe": {"stages": [3]}}))
    (found.folder / CHECKSUMS).unlink()
    with pytest.raises(Exception, match="does not hold a recipe"):
        way_of(made(6), tmp_path / "run")


def test_the_last_checkpoint_before_each_decay_stays() -> None:
    table = recipe(
        stage("a", steps=10, decay=FALLING), stage("b", steps=10), stage("c", steps=5, decay=FALLING)
    )
    assert decay_starts(table, [2, 6, 7, 8, 10, 15, 20, 21, 24, 25]) == {7, 21}
    assert decay_starts(table, [10, 20, 25]) == set()
