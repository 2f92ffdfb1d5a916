"""Zip files of strangers: damaged, encrypted, packed in a way that nobody knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from minicpm4.errors import Minicpm4Error

if TYPE_CHECKING:
    from zipfile import ZipFile

__all__ = ["opened_zip"]

_WAYS = {12: "bzip2", 14: "lzma", 93: "zstd"}


@contextmanager
def opened_zip(file: Path, refuse: Callable[[str], Exception]) -> Iterator[ZipFile]:
    """``file``, open to be read. Whatever is wrong with it, there or inside, raises ``refuse(why)``; so do
    errors of the disk. Members are stored or deflated, as they are in wheels and office files: of the other
    ways zipfile unpacks all that it reads at once, of bzip2 gigabytes for a kilobyte."""
    import struct  # what few commands need
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    way = _WAYS.get(member.compress_type, f"way {member.compress_type} of zip files")
                    raise refuse(f"{member.filename[:100]!r} is packed by {way}, not by deflate")
            yield archive
    except Minicpm4Error:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, struct.error, OSError),
        *(EOFError, LookupError, RuntimeError, ValueError, OverflowError),  # of odd names, sizes and ways
    ) as error:
        raise refuse(str(error) or type(error).__name__) from error
