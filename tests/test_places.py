"""Folders of caches follow one rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicpm4.places import cache_folder


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
