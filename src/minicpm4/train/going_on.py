"""What a recipe is held to by the run in its folder: all of it that has begun. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from minicpm4.config import ModelConfig
from minicpm4.config.strict import listed
from minicpm4.errors import CheckpointError, ConfigError, Minicpm4Error, shortened
from minicpm4.files import read_json, write_json
from minicpm4.formats.names import expected_tensors
from minicpm4.text.model_text import LAST
from minicpm4.train.guard import Guard
from minicpm4.train.head_plan import heads_of
from minicpm4.train.lengthening import MAY_CHANGE, ORDER, Way, way_on, with_order
from minicpm4.train.recipe import Recipe
from minicpm4.train.saved import MOMENTS, PAIRS, REMEDY, STATE, Saved, latest, stored

__all__ = ["TOKENIZER", "differences", "going_on", "guard_of", "mark_tokenizer", "recipe_table", "way_of"]

TOKENIZER, MADE_FOR = "tokenizer", "made_for.json"
MAX_TABLE = 1 << 24
FREE = ("output", "checkpoints", "name", "validate", "checkpoint_activations")  # may change at any time
_NOTHING = object()


def going_on(recipe: Recipe, run: Path, data: Mapping[str, Any] | None = None) -> Saved | None:
    """The checkpoint that ``recipe`` goes on from in folder ``run``; None: it begins there.

    It must be of the same recipe, as far as that has begun: what comes later may change, and of the stage
    that it is in the steps and the decay (``train/lengthening.py``). ``data``: hashes of the sets by corpus,
    where they are known. Raises ConfigError, which names what differs, CheckpointError.
    """
    way = way_of(recipe, run)
    if way is None:
        _check_tokenizer(recipe, run)
        return None
    found = way.found
    state = found.state()
    try:
        there, corpora = _begun(state["recipe"], found.step)
        here, _ = _begun(recipe_table(recipe), found.step)
        pairs = zip(there["stages"], here["stages"], strict=False)
        there["stages"][: len(here["stages"])] = [with_order(one, other) for one, other in pairs]
        if way.record is not None and there["stages"][-1]["name"] == way.record["stage"]:
            there["stages"][-1] |= {key: here["stages"][-1][key] for key in MAY_CHANGE}
        known = dict(state["data"])
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{found.folder / STATE} does not hold a recipe", REMEDY) from error
    if there != here:
        raise ConfigError(
            f"{run} holds a run of another recipe, {found.step} steps of it done "
            f"({listed([*differences(there, here)], apart='; ')})",
            "give another output folder, or the recipe that it was started with: "
            "only stages that have not begun may change, and of the last one that has its steps and decay",
        )
    if data is not None:
        one, other = ({name: table.get(name) for name in corpora} for table in (known, data))
        if one != other:
            raise CheckpointError(
                f"{run} was trained on other data "
                f"({listed([*differences(one, other, 'corpora')], apart='; ')})",
                "give another output folder, or the data that it was started with",
            )
    _check_whole(found, recipe, state)
    return found


def way_of(recipe: Recipe, run: Path) -> Way | None:
    """How ``recipe`` goes on in ``run``: from which checkpoint, and what is to be told of it. Raises
    ConfigError, CheckpointError."""
    try:
        return way_on(recipe, recipe_table(recipe), run)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, Minicpm4Error):
            raise
        found = latest(run)
        assert found is not None
        raise CheckpointError(f"{found.folder / STATE} does not hold a recipe", REMEDY) from error


def _check_whole(found: Saved, recipe: Recipe, state: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a file that going on from ``found`` would read is missing, cut off or of
    another model. Headers are read, no values."""
    guard_of(found, state)
    lengthened = state.get("lengthened", [])
    told = isinstance(lengthened, list) and all(
        isinstance(one, Mapping) and type(one.get("after")) is int for one in lengthened
    )
    if not told:
        raise CheckpointError(
            f"{found.folder / STATE} is damaged: it does not say where stages went on", REMEDY
        )
    begun = [stage for stage, end in zip(recipe.stages, [0, *recipe.ends], strict=False) if end < found.step]
    try:
        config = ModelConfig.from_hf(found.folder / "model")
    except ConfigError as error:
        raise CheckpointError(f"a checkpoint is damaged: {error.condition}", REMEDY) from error
    parts = {"model": expected_tensors(config)}
    parts |= {head.name: dict(head.shapes(config)) for head in heads_of(begun)}
    for name, shapes in parts.items():
        folder = found.folder / name
        there = {key: one.shape for key, one in stored(folder, "model").items()}
        if there != shapes:
            other = next(iter(differences(there, shapes)))
            raise CheckpointError(f"{folder} holds other tensors than its model's ({other})", REMEDY)
    stored(found.folder, MOMENTS)
    if any(found.folder.glob(f"{PAIRS}*.safetensors")):
        stored(found.folder, PAIRS)


def guard_of(found: Saved, state: Mapping[str, Any]) -> Guard:
    """The guard as ``state``, that of ``found``, keeps it. Raises CheckpointError."""
    try:
        return Guard.restored(state.get("guard", {}))
    except ValueError as error:
        raise CheckpointError(f"{found.folder / STATE} is damaged: {error}", REMEDY) from error


def recipe_table(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe a checkpoint keeps: all but where and how often it saves, as JSON has it, and the
    order of what a stage reads and rounds: streams draw by number, of rounding the first that fits counts."""
    table: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    for name in FREE:
        del table[name]
    if not table["model"]["ignore_fields"]:  # as in checkpoints from before there was such a key
        del table["model"]["ignore_fields"]
    for stage in table["stages"]:
        stage[ORDER] = {name: list(stage[name]) for name in ("data", "rounding")}
    return table


def mark_tokenizer(recipe: Recipe, run: Path) -> None:
    """Say in the run's folder what its tokenizer is made for, before it is. Raises OSError."""
    (run / TOKENIZER).mkdir(parents=True, exist_ok=True)
    write_json(run / TOKENIZER / MADE_FOR, _tokenizer_table(recipe))


def _tokenizer_table(recipe: Recipe) -> dict[str, Any]:
    table = recipe_table(recipe)
    names = table["tokenizer"]["corpora"]
    return {"tokenizer": table["tokenizer"], "corpora": {name: table["corpora"][name] for name in names}}


def _begun(table: Mapping[str, Any], step: int) -> tuple[dict[str, Any], list[str]]:
    """What of a recipe's table holds after ``step`` steps: all but stages that have not begun, and corpora
    that nothing has read yet; and the corpora that its stages have read."""
    stages, first = [], 0
    for stage in table["stages"]:
        if first >= step:
            break
        stages.append(stage)
        first += stage["steps"]
    read = sorted({name for stage in stages for name in stage["data"]})
    names = {*read, *table["tokenizer"]["corpora"]}
    made = [table["corpora"][name]["made"] for name in names]
    names |= {one["haystack"] for one in made if one}
    corpora = {name: table["corpora"][name] for name in names}
    return {**table, "stages": stages, "corpora": corpora}, read


def _check_tokenizer(recipe: Recipe, run: Path) -> None:
    """Raise ConfigError where the tokenizer of a run that has not saved yet was made for another recipe."""
    folder = run / TOKENIZER
    if not (folder / LAST).is_file():
        return
    remedy = f"remove {folder} and {run / 'data'}, or give another output folder"
    there = read_json(folder / MADE_FOR, MAX_TABLE, ConfigError, remedy)
    here = _tokenizer_table(recipe)
    if there != here:
        raise ConfigError(
            f"{folder} was made for another recipe ({listed([*differences(there, here)], apart='; ')})",
            remedy,
        )


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two JSON values differ, each place with both: "stages[0].rate: 0.1 -> 0.2"."""
    if one == other:
        return
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other}):
            place = f"{where}.{key}" if where else key
            yield from differences(one.get(key, _NOTHING), other.get(key, _NOTHING), place)
    elif _is_list(one) and _is_list(other):
        for index, (a, b) in enumerate(zip_longest(one, other, fillvalue=_NOTHING)):
            yield from differences(a, b, f"{where}[{index}]")
    else:
        yield f"{where}: {_shown(one)} -> {_shown(other)}"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _shown(value: Any) -> str:
    return "nothing" if value is _NOTHING else shortened(json.dumps(value, ensure_ascii=False), 100)
