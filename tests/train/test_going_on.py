"""A run goes on with any recipe that agrees with what has begun; what does not is named, field by field."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.files import CHECKSUMS
from minicpm4.train.going_on import differences, going_on
from minicpm4.train.recipe import Recipe
from minicpm4.train.saved import latest
from tests.train.runs import SHAPE, corpus, recipe, runner, stage

FIRST = stage("first", steps=4)


def begun(folder: Path, *stages: dict[str, Any], until: int = 4) -> Path:
    """A run that was stopped after ``until`` steps."""
    runner(recipe(FIRST, *stages), folder / "run", corpus(folder / "data")).run(until)
    return folder / "run"


def files(run: Path) -> list[bytes]:
    found = latest(run)
    assert found is not None
    names = ("model/model.safetensors", "optimiser.safetensors")
    return [(found.folder / name).read_bytes() for name in names]


@pytest.mark.parametrize("until", [3, 4])
@pytest.mark.parametrize(
    "changed", [{"rate": 0.002}, {"mtp": 0.3}, {"attention": "sparse"}, {"lora": {"rank": 2}}]
)
def test_a_stage_that_has_not_begun_may_be_mended(
    tmp_path: Path, until: int, changed: dict[str, Any]
) -> None:
    run = begun(tmp_path, stage("second", steps=4), until=until)
    mended, data = recipe(FIRST, stage("second", steps=3, **changed)), corpus(tmp_path / "data")
    assert runner(mended, run, data).run().step == 7
    runner(mended, tmp_path / "whole", data).run()
    assert files(run) == files(tmp_path / "whole")


def test_stages_may_be_added_and_taken_away_behind_what_has_begun(tmp_path: Path) -> None:
    run = begun(tmp_path, stage("second", mtp=0.3))
    assert going_on(recipe(FIRST), run) == latest(run)
    more = recipe(FIRST, stage("other", data={"new": 1.0}), corpora={"text": TEXT, "new": TEXT})
    assert going_on(more, run) == latest(run)


TEXT = {"paths": ["unused"]}
AS_IT_WAS = {"output": "elsewhere", "name": "other", "validate": 3, "checkpoint_activations": True}
OTHER: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"rate": 0.02}, {}, "(stages[0].rate: 0.01 -> 0.02)"),
    ({"steps": 6, "z_loss": 0.1}, {}, "(stages[0].steps: 4 -> 6; stages[0].z_loss: 0.0 -> 0.1)"),
    ({"name": "f"}, {"seed": 4}, '(seed: 3 -> 4; stages[0].name: "first" -> "f")'),
    ({}, {"optimiser": {"kind": "muon"}}, '(optimiser.kind: "adamw" -> "muon")'),
    ({}, {"precision": "bf16"}, '(precision: "float32" -> "bf16")'),
    ({}, {"tokenizer": {"path": "b"}}, '(tokenizer.path: "unused" -> "b")'),
    ({}, {"model": {"shape": SHAPE}}, "(model.mup_width: 64 -> 0)"),
    ({}, {"corpora": {"text": {"paths": ["a"]}}}, '(corpora.text.paths[0]: "unused" -> "a")'),
]


@pytest.mark.parametrize(("in_stage", "in_recipe", "named"), OTHER)
def test_what_has_begun_may_not_change_and_the_fields_are_named(
    tmp_path: Path, in_stage: dict[str, Any], in_recipe: dict[str, Any], named: str
) -> None:
    run = begun(tmp_path, stage("second"), until=2)
    with pytest.raises(ConfigError, match="a run of another recipe, 2 steps of it done") as refused:
        runner(recipe(FIRST | in_stage, **in_recipe), run, corpus(tmp_path / "data"))
    assert named in str(refused.value)
    assert going_on(recipe(FIRST, **AS_IT_WAS), run) == latest(run)


BOTH = {"text": 0.5, "also": 0.5}
FORMATS = {"down_proj": "int8-g32", "mlp.*": "ternary-g64"}


def ordered(data: dict[str, float], rounding: dict[str, str], steps: int = 4) -> Recipe:
    first = stage("first", steps=steps, data=data, rounding=rounding)
    return recipe(first, corpora={"text": TEXT, "also": TEXT})


def reversed_order(table: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(table.items()))


@pytest.mark.parametrize("steps", [4, 6])  # as it was, and lengthened
def test_the_order_of_data_and_rounding_may_not_change(tmp_path: Path, steps: int) -> None:
    run = tmp_path / "run"
    runner(ordered(BOTH, FORMATS), run, corpus(tmp_path / "data")).run(2)
    assert going_on(ordered(BOTH, FORMATS, steps), run) == latest(run)
    with pytest.raises(ConfigError, match=r'stages\[0\].order.data\[0\]: "text" -> "also"'):
        going_on(ordered(reversed_order(BOTH), FORMATS, steps), run)
    with pytest.raises(ConfigError, match=r'stages\[0\].order.rounding\[0\]: "down_proj" -> "mlp.\*"'):
        going_on(ordered(BOTH, reversed_order(FORMATS), steps), run)
    # A checkpoint from before orders were kept says nothing of them.
    found = latest(run)
    assert found is not None
    old = found.state()
    for one in old["recipe"]["stages"]:
        del one["order"]
    state(**old)(found.folder)
    assert going_on(ordered(reversed_order(BOTH), FORMATS, steps), run) == found


def test_other_data_of_a_begun_stage_is_refused(tmp_path: Path) -> None:
    run = begun(tmp_path)
    assert going_on(recipe(FIRST), run, {"text": corpus(tmp_path / "data").hash, "new": "b"}) is not None
    with pytest.raises(CheckpointError, match=r'other data \(corpora.text: "\w+" -> "a"\)'):
        going_on(recipe(FIRST), run, {"text": "a"})


def test_a_state_without_a_recipe_is_refused(tmp_path: Path) -> None:
    run = begun(tmp_path)
    found = latest(run)
    assert found is not None
    (found.folder / "state.json").write_text('{"version": 1, "step": 4, "recipe": [], "data": {}}')
    (found.folder / CHECKSUMS).unlink()
    with pytest.raises(CheckpointError, match="does not hold a recipe"):
        going_on(recipe(FIRST), run)


def state(**changed: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "state.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))
        (folder / CHECKSUMS).unlink()

    return change


def exchanged(folder: Path) -> None:
    shutil.copytree(folder / "model", folder / "mtp", dirs_exist_ok=True)
    (folder / CHECKSUMS).unlink()


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "model" / "config.json").unlink(), r"model.config.json: No such file"),
    (lambda folder: (folder / "model" / "model.safetensors").unlink(), r"model.safetensors"),
    (lambda folder: (folder / "optimiser.safetensors").unlink(), r"optimiser.safetensors"),
    (cut("model/config.json"), r"config.json"),
    (cut("model/model.safetensors"), r"model.safetensors"),
    (cut("optimiser.safetensors"), r"optimiser.safetensors"),
    (cut("mtp/model.safetensors"), r"mtp.model.safetensors"),
    (exchanged, "other tensors"),
    (state(guard=5), "state.json is damaged: its guard holds no losses"),
    (state(guard={"recent": ["a"]}), "state.json is damaged: its guard holds no losses"),
    (state(guard={"bad": 1.5}), "state.json is damaged: its guard holds no losses"),
    (state(lengthened=5), "state.json is damaged: it does not say where stages went on"),
    (state(lengthened=[{"after": "x"}]), "state.json is damaged: it does not say where stages went on"),
    (state(data="ab"), "does not hold a recipe"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGE)
def test_a_damaged_checkpoint_is_refused_before_a_model_is_made(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    first = FIRST | {"steps": 1, "mtp": 0.3}
    runner(recipe(first), tmp_path / "run", corpus(tmp_path / "data")).run()
    found = latest(tmp_path / "run")
    assert found is not None and going_on(recipe(first), tmp_path / "run") == found
    damage(found.folder)
    with pytest.raises(CheckpointError, match=said) as refused:
        going_on(recipe(first), tmp_path / "run")
    assert refused.value.remedy == "remove this checkpoint to go on from an earlier one"


def test_differences_are_named_to_the_last_field_and_no_further() -> None:
    one = {"a": {"b": [1, 2, 3], "c": "x"}, "d": 1, "same": [0]}
    other = {"a": {"b": [1, 5], "c": "x"}, "e": None, "same": [0]}
    assert list(differences(one, other)) == [
        "a.b[1]: 2 -> 5",
        "a.b[2]: 3 -> nothing",
        "d: 1 -> nothing",
        "e: nothing -> null",
    ]
