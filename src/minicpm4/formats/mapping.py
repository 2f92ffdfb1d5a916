"""A read-only memory-mapped file whose parts are NumPy views."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError
from minicpm4.files import LFS_REMEDY, FileSums, is_lfs_pointer

__all__ = ["MappedFile"]


class MappedFile:
    """``path`` mapped for reading; it stays mapped while a view of it lives. ``sums``: what it is to hold.

    Raises CheckpointError when the file cannot be opened, is empty, or is a pointer of Git LFS.
    """

    def __init__(self, path: Path, sums: FileSums | None = None) -> None:
        self.path, self._sums = path, sums
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # mmap refuses an empty file with ValueError
            raise CheckpointError(
                f"cannot map {path}: {error}", "check the path, or download it again"
            ) from error
        self.size = len(self._map)
        if is_lfs_pointer(memoryview(self._map), self.size):
            raise CheckpointError(f"{path} is a pointer of Git LFS, not the file itself", LFS_REMEDY)
        self._bytes = np.frombuffer(self._map, np.uint8)

    def buffer(self) -> memoryview:
        """The whole file, for parsing."""
        return memoryview(self._map)

    def view(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Return ``nbytes`` from ``offset`` on, which the caller has checked to lie in the file. Raises
        CheckpointError where they are not what was written."""
        assert offset >= 0 and offset + nbytes <= self.size, (offset, nbytes, self.size)
        if self._sums is not None:
            self._sums.check(memoryview(self._map), offset, nbytes)
        return self._bytes[offset : offset + nbytes]

    def release(self, offset: int, nbytes: int) -> None:
        """Let the system drop the cached pages that lie wholly in this part; reading maps them again."""
        if not hasattr(self._map, "madvise") or not hasattr(mmap, "MADV_DONTNEED"):
            return  # Windows: its memory manager trims mapped pages by itself
        page = mmap.PAGESIZE
        start, end = -(-offset // page) * page, (offset + nbytes) // page * page
        if end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)
