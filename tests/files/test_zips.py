"""Zip files that ask for too much."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from minicpm4.errors import UnsupportedError
from minicpm4.files import opened_zip


def test_a_zip_that_asks_for_more_memory_than_there_is_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", "b")
    with (
        pytest.raises(UnsupportedError, match="it asks for more memory than there is"),
        opened_zip(tmp_path / "a.zip", UnsupportedError),
    ):
        raise MemoryError  # as LZMA does for a dictionary of gigabytes
