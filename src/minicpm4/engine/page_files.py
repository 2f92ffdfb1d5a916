"""Pages of the cache as files, so that a prompt that was read before a restart need not be read again.

A file for each page, named by the chain of tokens that it ends, as in engine/pages.py, and by the page
before. So prompts that begin alike share files, and what a page follows is never removed before it. Files are
written whole or not at all, by a thread of its own, and trusted no more than any: of one size, which is
known, and with a sum over all that they hold, the model and the tokens among it. One with which anything is
wrong is left aside, and its page is computed.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from minicpm4.engine.pages import PageKey
from minicpm4.errors import ConfigError
from minicpm4.files import check_writing, lock, writing
from minicpm4.model.cache import KVPool

__all__ = ["BUFFERS", "PageFiles", "check_folder"]

logger = logging.getLogger("minicpm4")

BUFFERS = 24  # pages that are on their way to the disk at a time; and one that comes from there
PATIENCE = 60.0  # seconds
SPARE = 1 << 30  # bytes that the disk keeps free
_MAGIC = b"minicpm4 page 1\n"
_SUM = 32  # bytes of a digest
_LOOK = 0.05  # of the most: bytes written after which the folder is looked through again
_SHRINK = 0.9  # of the most: what is left when there was too much
_SUFFIX = ".page"


class PageFiles:
    """The pages of ``pool`` in ``folder``, which other processes and models may share. ``key``: of all that
    a page's numbers depend on but its tokens; ``most``: bytes of all files there.

    Raises ConfigError where the folder cannot be written to.
    """

    def __init__(self, folder: Path, key: bytes, pool: KVPool, most: int) -> None:
        self._folder, self._key, self._pool, self._most = folder, hashlib.blake2b(key).digest(), pool, most
        self._own = folder / self._key.hex()[:32]
        self._head = len(_MAGIC) + len(self._key) + 16 + 4 * pool.page_size
        self._size = self._head + pool.page_nbytes + _SUM
        check_folder(folder)
        check_folder(self._own)
        self._bad: set[bytes] = set()  # digests whose files were of no use: they are written anew
        self._warned = False
        self._why_not = ""  # nothing is written any more
        self._read = np.empty(self._size, np.uint8)
        self._free: SimpleQueue[NDArray[np.uint8]] = SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(np.empty(self._size, np.uint8))
        self._full: SimpleQueue[tuple[PageKey, NDArray[np.uint8]] | None] = SimpleQueue()
        self._written = self._most  # bytes since the folder was looked through: it was not yet
        self._total = 0
        self._thread = Thread(target=self._write_all, name="minicpm4 pages", daemon=True)
        self._thread.start()

    @property
    def room_for_pages(self) -> int:
        """How many pages one may bring between two steps: what is read in a few hundredths of a second."""
        return max(1, (32 << 20) // self._size)

    def has(self, key: PageKey) -> bool:
        """Whether there is a file; ``fill`` may find that it is of no use."""
        return key.digest not in self._bad and os.path.exists(self._path(key))

    def fill(self, page: int, key: PageKey) -> bool:
        """Put what is kept under ``key`` into a page; False where there is nothing that could be used."""
        path = self._path(key)
        try:
            # What waits when it is opened, or never ends, is no file of ours.
            if not stat.S_ISREG(path.lstat().st_mode):
                raise ValueError("it is no file")
            with path.open("rb", buffering=0) as data:
                if os.fstat(data.fileno()).st_size != self._size:
                    raise ValueError("it is of another size")
                view, done = self._read.data, 0
                while done < self._size and (count := data.readinto(view[done:])):
                    done += count
            if done != self._size:
                raise ValueError("it was cut short")
            if bytes(self._read[: self._head]) != self._header(key):
                raise ValueError("it is of another model, or of other tokens")
            if bytes(self._read[-_SUM:]) != _sum_of(self._read[:-_SUM]):
                raise ValueError("it is damaged")
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            self._bad.add(key.digest)
            if not self._warned:
                self._warned = True
                logger.warning("%s is ignored: %s (others like it are not named)", path, error)
            return False
        self._pool.write_page(page, self._read[self._head : -_SUM])
        with suppress(OSError):
            os.utime(path)  # what was used last is removed last
        return True

    def save(self, page: int, key: PageKey, patience: float = 0.0) -> bool:
        """Copy a page, which is then on its way to the disk, unless it is there; False where there was no
        room for a copy within ``patience`` seconds: try again later."""
        if self._why_not or not self._thread.is_alive() or self.has(key):
            return True
        try:
            buffer = self._free.get(patience > 0, patience)
        except Empty:
            return False
        try:
            self._pool.read_page(page, buffer[self._head : -_SUM])
            buffer[: self._head] = np.frombuffer(self._header(key), np.uint8)
        except BaseException:  # an interrupt, too: there are few of them
            self._free.put(buffer)
            raise
        self._full.put((key, buffer))
        return True

    def close(self) -> None:
        """Wait until all is written, but no longer than a disk may take for what is on its way."""
        self._full.put(None)
        self._thread.join(PATIENCE)

    def _path(self, key: PageKey) -> Path:
        name = key.digest.hex()
        return self._own / name[:2] / f"{name}-{key.parent.hex()}{_SUFFIX}"

    def _header(self, key: PageKey) -> bytes:
        return b"".join((_MAGIC, self._key, key.parent, key.tokens))

    def _write_all(self) -> None:
        while (given := self._full.get()) is not None:
            key, buffer = given
            try:
                if not self._why_not:
                    self._write(self._path(key), buffer)
                    self._bad.discard(key.digest)
            except Exception as error:
                self._stop(str(error))
            self._free.put(buffer)

    def _write(self, path: Path, buffer: NDArray[np.uint8]) -> None:
        if self._written >= _LOOK * self._most or self._total + self._size > self._most:
            self._look()
        if self._why_not:
            return
        path.parent.mkdir(0o700, exist_ok=True)
        with suppress(OSError):
            if not stat.S_ISREG(path.lstat().st_mode):  # a pipe would be waited for, a link followed
                path.unlink()
        buffer[-_SUM:] = np.frombuffer(_sum_of(buffer[:-_SUM]), np.uint8)
        with writing(path, private=True) as out:  # prompts are in it
            out.write(buffer.data)
        self._written += self._size
        self._total += self._size

    def _look(self) -> None:
        """Count what all files take, and remove some where that is too much."""
        if self._size > self._most:
            self._stop(f"a page takes {self._size:,} bytes, all may take {self._most:,}")
            return
        with lock(self._folder / "lock"):
            files = dict(_files(self._folder))
            self._total = sum(size for size, _ in files.values())
            if self._total + self._size > self._most:
                wanted = max(int(_SHRINK * self._most) - self._size, 0)
                for file in _oldest_first(files):
                    if self._total <= wanted:
                        break
                    with suppress(FileNotFoundError):
                        file.unlink()
                    self._total -= files[file][0]
        self._written = 0
        if shutil.disk_usage(self._folder).free < SPARE:
            self._stop(f"the disk has less than {SPARE / 1e9:.1f} GB left")

    def _stop(self, why: str) -> None:
        self._why_not = why
        logger.warning("no more pages are kept in %s: %s", self._folder, why)


def check_folder(folder: Path) -> None:
    """Make a folder, the user's alone where it is new. Raises ConfigError where it cannot be written to."""
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        check_writing(folder / "lock")
    except OSError as error:
        raise ConfigError(
            f"cannot keep pages in {folder}: {error.strerror}", "name another folder (--cache-dir, cache_dir)"
        ) from error


def _sum_of(data: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(data.data, digest_size=_SUM).digest()


def _files(folder: Path) -> Iterator[tuple[Path, tuple[int, float]]]:
    """Files of pages, of all models, each with its bytes and when it was last used."""
    for file in folder.glob(f"*/??/*{_SUFFIX}"):
        with suppress(OSError):
            found = file.lstat()
            if stat.S_ISREG(found.st_mode):
                yield file, (found.st_size, found.st_mtime)


def _oldest_first(files: dict[Path, tuple[int, float]]) -> Iterator[Path]:
    """In the order in which they are removed: the one that was used longest ago of those that no other
    follows. What a page follows is of use to it alone. Last come those that follow each other in a circle,
    as no page does, whatever their names say."""
    now = time.time()
    named = {(file.parent.parent.name, file.name[:32]): file for file in files}
    before = {file: named.get((file.parent.parent.name, file.stem[33:])) for file in files}
    followers = dict.fromkeys(files, 0)
    for one in before.values():
        if one is not None:
            followers[one] += 1
    # A time to come is a clock's fault: it must not keep a file for ever.
    ends = [(min(used, now), str(file), file) for file, (_, used) in files.items() if not followers[file]]
    heapq.heapify(ends)
    while ends:
        *_, file = heapq.heappop(ends)
        yield file
        one = before[file]
        if one is not None:
            followers[one] -= 1
            if not followers[one]:
                heapq.heappush(ends, (min(files[one][1], now), str(one), one))
    yield from sorted((one for one, count in followers.items() if count), key=lambda one: files[one][1])
