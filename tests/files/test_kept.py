"""Kept pieces: what is damaged is refused with what to do, whatever the damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicpm4.errors import ConfigError
from minicpm4.files import Kept, keeping

DAMAGED = ("", '{"key"', "[]", "{}")
OTHERS = ('{"value": 1}', '{"key": ["two"], "value": 1}', '{"key": ["one"], "value": "x"}')


@pytest.mark.parametrize("content", DAMAGED + OTHERS)
def test_a_damaged_piece_is_told_of(tmp_path: Path, content: str) -> None:
    kept = Kept(tmp_path, {"kind": "a"})
    assert kept.get(int, "one") is None
    kept.put(1, "one")
    (file,) = [one for one in tmp_path.iterdir() if one.name != "about.json"]
    file.write_text(content)
    with pytest.raises(ConfigError, match=f"remove {file} to have that piece made anew"):
        kept.get(int, "one")


@pytest.mark.parametrize("content", DAMAGED)
def test_a_folder_that_does_not_say_what_was_begun_is_not_gone_on_with(tmp_path: Path, content: str) -> None:
    Kept(tmp_path, {"kind": "a"}).put(1, "one")
    (tmp_path / "about.json").write_text(content)
    with pytest.raises(ConfigError, match=f"give another folder, or remove {tmp_path} to begin anew"):
        Kept(tmp_path, {"kind": "a"})


def test_a_piece_is_found_again_under_its_key(tmp_path: Path) -> None:
    Kept(tmp_path, {"kind": "a"}).put([1, 2], "one", (3, {"b": True}))
    assert Kept(tmp_path, {"kind": "a"}).get(tuple, "one", (3, {"b": True})) == (1, 2)


def fails(folder: Path, *keys: str) -> None:
    """Work that ends in an error, after pieces with these keys."""
    with keeping(folder, {"kind": "a"}) as kept:
        for key in keys:
            kept.put(1, key)
        raise InterruptedError


def test_what_fails_before_there_is_a_piece_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "parts"
    for keys, there in ((), False), (("one",), True), ((), True):
        with pytest.raises(InterruptedError):
            fails(folder, *keys)
        assert folder.parent.exists() == there == (folder / "about.json").exists()
    assert Kept(folder, {"kind": "a"}).get(int, "one") == 1
