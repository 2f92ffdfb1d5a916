"""Locks between processes and threads, on files. The end of a process lets go of them, however it ends."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["lock", "suppress_no_locks", "try_lock"]

logger = logging.getLogger("minicpm4")

_NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)  # of file systems that have none


@contextmanager
def lock(file: Path, busy: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold ``file``, made where it is not there and never removed.

    Where another holds it, ``busy`` is called (to say so, or to raise), then this waits. A file system
    without locks is warned of, and nothing is waited for. Raises OSError, also for a link: none is followed.
    """
    held = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        with suppress_no_locks():
            if not try_lock(held, wait=False):
                if busy is not None:
                    busy()
                try_lock(held, wait=True)
        yield
    finally:
        os.close(held)


@contextmanager
def suppress_no_locks() -> Iterator[None]:
    """Go on, with a warning, where a file system has no locks."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "no locks in this file system (%s): let no two processes write the same", error.strerror
        )


if sys.platform == "win32":
    import msvcrt
    import time

    def try_lock(held: int, *, wait: bool) -> bool:
        """Lock an open file until it is closed; False where another has it and this may not wait."""
        while True:
            os.lseek(held, 0, os.SEEK_SET)
            try:
                msvcrt.locking(held, msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if not wait:
                    return False
            time.sleep(0.1)

else:
    import fcntl

    def try_lock(held: int, *, wait: bool) -> bool:
        """Lock an open file until it is closed; False where another has it and this may not wait. Raises
        OSError."""
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True
