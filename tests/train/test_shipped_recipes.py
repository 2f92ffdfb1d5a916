"""The recipe that a newcomer runs first: its data can be packed and held out from the pages as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicpm4.train.prepare import prepare
from minicpm4.train.recipe import read_recipe

ROOT = Path(__file__).parents[2]


def test_the_tiny_recipe_finds_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = read_recipe(ROOT / "recipes" / "tiny.toml")
    prepared = prepare(recipe, tmp_path)
    (data,) = prepared.data.values()
    assert len(data) >= 5 and data.num_tokens > 50_000
    # So far from all or nothing that no edit of a page is likely to get there.
    assert recipe.corpora["text"].holdout == 0.5
