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


@contextmanager
def opened_zip(file: Path, refuse: Callable[[str], Exception]) -> Iterator[ZipFile]:
    """``file``, open to be read. Whatever is wrong with it, there or inside, raises ``refuse(why)``; so do
    errors of the disk."""
    import lzma  # what few commands need
    import struct
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except Minicpm4Error:
        raise
    except MemoryError as error:  # LZMA takes as large a dictionary as the file says
        raise refuse("it asks for more memory than there is") from error
    except (
        *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError),
        *(EOFError, LookupError, RuntimeError, ValueError, OverflowError),  # of odd names, sizes and ways
    ) as error:
        raise refuse(str(error) or type(error).__name__) from error
