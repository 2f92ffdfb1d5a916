"""A stage that has begun, with another number of steps or another decay: from which checkpoint it goes on.

Batches are a function of the step and rates of the recipe, so a checkpoint may stand for one of a run that
was planned otherwise as long as no step before it would have had another rate: up to where a decay begins.

    no decay                     goes on from the end: as if it had been planned so
    decay, an earlier one kept   goes on from there, as if it had been planned so; later ones are put aside
                                 (a decay from the first step: from the end of the stage before)
    decay, none kept             goes on from the end, whose rate has fallen, at the rates that the recipe now
                                 gives: not as if it had been planned so, which a note and state.json say

Pairs of LoRA are merged at a stage's end: it goes on from an earlier checkpoint of the stage, or not at all.
No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minicpm4.errors import ConfigError
from minicpm4.files import publish, write_file
from minicpm4.train.recipe import Recipe, Stage
from minicpm4.train.saved import LOG, Saved, saved
from minicpm4.train.schedule import rate_at
from minicpm4.train.settings import Decay

__all__ = ["MAY_CHANGE", "ORDER", "Way", "decay_starts", "put_aside", "way_on", "with_order"]

MAY_CHANGE = ("steps", "decay")  # of a stage that has begun
ORDER = "order"  # of a stage's tables whose order counts, which state.json, with sorted keys, does not keep


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """``found``: the checkpoint to go on from; ``aside``: later ones, of the stage as it was; ``note``: what
    is to be told, ``record`` what state.json keeps of it (None: the stage is as it was)."""

    found: Saved
    aside: tuple[Saved, ...] = ()
    note: str = ""
    record: Mapping[str, Any] | None = None


def way_on(recipe: Recipe, table: Mapping[str, Any], run: Path) -> Way | None:
    """How ``recipe``, whose stages are ``table["stages"]`` as a checkpoint keeps them, goes on in folder
    ``run``; None: there is no checkpoint. Whether all else agrees is not looked at. Raises ConfigError for a
    stage whose pairs are merged, CheckpointError; KeyError, TypeError and the like for a state that holds no
    recipe."""
    every = saved(run)
    if not every:
        return None
    last = every[-1]
    was = last.state()["recipe"]["stages"]
    number, first = 0, 0
    while number + 1 < len(was) and first + was[number]["steps"] < last.step:
        first += was[number]["steps"]
        number += 1
    if number >= len(recipe.stages):
        return Way(found=last)
    stage, old = recipe.stages[number], with_order(was[number], table["stages"][number])
    if old == table["stages"][number]:
        return Way(found=last)
    differs = [key for key, value in table["stages"][number].items() if old.get(key) != value]
    if not set(differs) <= set(MAY_CHANGE) or stage.steps < last.step - first:
        return Way(found=last)
    own = [one for one in every if one.step > first]
    if not min(_stable(_as_it_was(stage, last, number)), _stable(stage)):
        # It decays from its first step: the last checkpoint before that is the end of the stage before.
        own = [one for one in every if one.step == first] + own
    for one in reversed(own):
        if one.step == first:  # made by a recipe that may have had another stage here
            return _told(recipe, number, one, own[1:], old, last)
        before = _as_it_was(stage, one, number)
        merged = stage.lora is not None and one.step == first + before.steps
        if not merged and _agree(before, stage, one.step - first):
            return _told(recipe, number, one, [later for later in own if later.step > one.step], old, last)
    if stage.lora is not None:
        raise ConfigError(
            f"stage {stage.name!r} cannot go on: its pairs were merged at its end, after {last.step - first} "
            "steps, and no earlier checkpoint of it is kept",
            "add a further stage, which begins pairs of its own",
        )
    return _told(recipe, number, last, [], old, last)


def with_order(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Stage ``was`` of a checkpoint; where that is from before orders were kept, in the order of ``now``."""
    return {ORDER: now[ORDER], **was}


def put_aside(way: Way, run: Path) -> None:
    """Give later checkpoints names under which nothing goes on from them; the log up to them goes along.
    Raises OSError."""
    for one in way.aside:
        if (run / LOG).is_file():
            write_file(one.folder / LOG, (run / LOG).read_bytes())
        target, number = run / f"ended-{one.step:09d}", 1
        while target.exists():
            number += 1
            target = run / f"ended-{one.step:09d}-{number}"
        publish(one.folder, target)


def decay_starts(recipe: Recipe, steps: Sequence[int]) -> set[int]:
    """Of the checkpoints after ``steps`` those from which a stage could be lengthened: the last one before
    each decay."""
    found, first = set(), 0
    for stage in recipe.stages:
        inside = [step for step in steps if first < step <= first + _stable(stage)]
        if stage.decay.steps and inside:
            found.add(max(inside))
        first += stage.steps
    return found


def _stable(stage: Stage) -> int:
    """Steps of a stage before its decay."""
    return stage.steps - stage.decay.steps


def _as_it_was(stage: Stage, one: Saved, number: int) -> Stage:
    """``stage`` as the recipe that checkpoint ``one`` was made by had it."""
    table = one.state()["recipe"]["stages"][number]
    return replace(stage, steps=table["steps"], decay=Decay(**table["decay"]))


def _agree(one: Stage, other: Stage, steps: int) -> bool:
    """Whether the first ``steps`` have the same rates in both."""
    same = (one.steps, one.decay) == (other.steps, other.decay)
    return same or steps <= min(_stable(one), _stable(other))


def _told(
    recipe: Recipe, number: int, found: Saved, later: list[Saved], old: Mapping[str, Any], last: Saved
) -> Way:
    stage = recipe.stages[number]
    first = sum(one.steps for one in recipe.stages[:number])
    was = _as_it_was(stage, last, number)
    planned = _agree(was, stage, found.step - first) or bool(later)
    changed = f"{stage.steps:,} steps now (it had {was.steps:,})"
    change = f"stage {stage.name!r} has {changed if stage.steps != was.steps else 'another decay now'}"
    if planned:
        note = f"{change}: it goes on after step {found.step:,}, as if it had been planned so"
        if later:
            names = ", ".join(f"{one.step:,}" for one in later)
            note += (
                f"; the later checkpoints ({names}), whose rate was falling already, are kept under names "
                "that begin with ended"
            )
    else:
        rates = [rate_at(_with(recipe, number, was), found.step - 1), rate_at(recipe, found.step)]
        note = (
            f"{change}: no checkpoint from before its decay is kept, so that it goes on after step "
            f"{found.step:,}, to which the rate had fallen to {rates[0]:.3g}, with a rate of {rates[1]:.3g}: "
            "not as if it had been planned so"
        )
    record = {
        "stage": stage.name,
        "steps": [old["steps"], stage.steps],
        "after": found.step,
        "as_planned": planned,
    }
    return Way(found=found, aside=tuple(later), note=note, record=record)


def _with(recipe: Recipe, number: int, stage: Stage) -> Recipe:
    """``recipe`` with another stage in the place of one."""
    stages = list(recipe.stages)
    stages[number] = stage
    return replace(recipe, stages=tuple(stages))
