"""Kept pieces: what is damaged is refused with what to do, whatever the damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicpm4.errors import ConfigError
from minicpm4.files import Kept

DAMAGED = ("", '{"key"', "[]", "{}")


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_piece_is_told_of(tmp_path: Path, content: str) -> None:
    kept = Kept(tmp_path, {"kind": "a"})
    assert kept.get("one") is None
    kept.put(1, "one")
    (file,) = [one for one in tmp_path.iterdir() if one.name != "about.json"]
    file.write_text(content)
    with pytest.raises(ConfigError, match=f"remove {file} to have that piece made anew"):
        kept.get("one")


@pytest.mark.parametrize("content", DAMAGED)
def test_a_folder_that_does_not_say_what_was_begun_is_not_gone_on_with(tmp_path: Path, content: str) -> None:
    Kept(tmp_path, {"kind": "a"}).put(1, "one")
    (tmp_path / "about.json").write_text(content)
    with pytest.raises(ConfigError, match=f"give another folder, or remove {tmp_path} to begin anew"):
        Kept(tmp_path, {"kind": "a"})
