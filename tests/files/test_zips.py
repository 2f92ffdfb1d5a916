"""Zip files that ask for too much."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from minicpm4.errors import UnsupportedError
from minicpm4.files import opened_zip


@pytest.mark.parametrize(("method", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma")])
def test_what_is_unpacked_at_once_however_much_it_is_is_refused(
    tmp_path: Path, method: int, name: str
) -> None:
    """A wheel of 2 kB, packed by bzip2, took 6 GB of memory."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("deflated", "b", zipfile.ZIP_DEFLATED)
        archive.writestr("a", "b", method)
    with (
        pytest.raises(UnsupportedError, match=f"'a' is packed by {name}, not by deflate"),
        opened_zip(tmp_path / "a.zip", UnsupportedError),
    ):
        raise AssertionError("it was opened")
