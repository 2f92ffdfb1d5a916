"""The table of docs/parallel.md is what the functions give; splits that cannot be are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from minicpm4.errors import ConfigError
from minicpm4.train.estimate import Cluster
from minicpm4.train.parallel import Split, split
from minicpm4.train.recipe import model_config, read_recipe

ROOT = Path(__file__).parents[2]
LINES = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in (ROOT / "docs" / "parallel.md").read_text(encoding="utf-8").splitlines()
    if line.startswith(("| 32K", "| 128K"))
]


def of(length: int, attention: str, context: int, tensor: int) -> Split:
    recipe = read_recipe(ROOT / "recipes" / "minicpm4-8b.toml")
    long = next(stage for stage in recipe.stages if stage.name == "long")
    stage = replace(long, context=length, max_position_embeddings=length, attention=attention, buckets=())
    config = model_config(recipe, 0, {})
    return split(recipe, config, stage, Cluster(), context=context, tensor=tensor)


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line[:2]))
def test_the_table_is_what_the_functions_give(line: list[str]) -> None:
    length, attention = line[0].split()
    context, tensor = map(int, line[1].split(" x "))
    found = of(int(length[:-1]) * 1024, attention, context, tensor)
    giga = (found.activations, found.total, found.fsdp, found.context, found.tensor)
    received = found.fsdp + found.context + found.tensor
    times = (found.seconds, received / Cluster().link)
    shown = [*(f"{value / 1e9:.1f}" for value in giga), *(f"{value * 1e3:,.0f}" for value in times)]
    assert [str(found.documents), *shown] == line[2:]


def test_the_table_has_every_case() -> None:
    assert len(LINES) == 16


def test_heads_are_not_copied_in_silence() -> None:
    with pytest.raises(ConfigError, match="tensor = 4 exceeds the 2 key/value heads"):
        of(32768, "dense", 2, 4)
    with pytest.raises(ConfigError, match="do not divide"):
        of(32768, "dense", 3, 1)
