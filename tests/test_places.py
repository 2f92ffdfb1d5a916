"""Folders of caches follow one rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minicpm4.data.asks import corpora_of
from minicpm4.data.corpora import Corpus
from minicpm4.data.sources import files_of
from minicpm4.engine.drafters import draft_head
from minicpm4.errors import ConfigError
from minicpm4.places import cache_folder, cache_home, from_user


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Path("/kept/weights")),
        ("  ", Path("/kept/weights")),
        ("/else where", Path("/else where")),
        ("~/w", Path.home() / "w"),
        ("OFF", None),
    ],
)
def test_the_folder_of_a_cache(
    value: str | None, expected: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINICPM4_HOME", "/kept")
    monkeypatch.delenv("MINICPM4_SOME", raising=False)
    if value is not None:
        monkeypatch.setenv("MINICPM4_SOME", value)
    assert cache_folder("weights", "MINICPM4_SOME") == expected


STRANGER = "~nobody-has-this-name/t"


@pytest.mark.parametrize(
    "read",
    [
        from_user,
        lambda path: from_user(f"~\0{path}"),
        lambda path: files_of("text", [path]),
        lambda path: corpora_of([path]),
        lambda path: Corpus(kind="shards", paths=(path,)).folder,
        lambda path: draft_head(f"eagle:{path}", Path("model")),
    ],
)
def test_the_home_of_somebody_unknown_is_one_error(read: Callable[[str], Any]) -> None:
    with pytest.raises(ConfigError, match=r"the home folder in .* is not known here"):
        read(STRANGER)


def test_a_cache_in_an_unknown_home_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINICPM4_HOME", STRANGER)
    monkeypatch.setenv("MINICPM4_SOME", STRANGER)
    for find in (cache_home, lambda: cache_folder("weights", "MINICPM4_SOME")):
        with pytest.raises(ConfigError, match=r"the home folder in .* is not known here"):
            find()
