"""Files and folders written whole or not at all.

What is written goes to a private part beside its target, ``.NAME.<8 hex digits>.part``: a folder that holds
``lock``, locked while its process lives, and ``new``, which is renamed to the target when it is whole. So two
writers never meet, readers see the old or the new, and what a dead process left is known by its free lock,
in another container too: the next one to write beside it removes it, or ends what it had begun to rename.

``durable``: what is written has reached the disk before it gets its name. It is for what took long to make;
a cache needs it not if its readers check what they read.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from minicpm4.files.json_values import json_text
from minicpm4.files.locks import suppress_no_locks, try_lock

__all__ = [
    "Part",
    "check_writing",
    "growing",
    "making",
    "part_name",
    "publish",
    "remove_folder",
    "sweep",
    "sync",
    "write_file",
    "write_json",
    "writing",
    "writing_folder",
    "writing_path",
]

_PART = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part")
_DEAD_AFTER = 24 * 3600.0  # seconds, where files cannot be locked
_LOCK, _NEW, _OLD, _GONE = "lock", "new", "old", "gone"
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # by the disk, of what is written
_WINDOWS = os.name == "nt"  # which removes nothing that is open, and syncs no folder


def part_name(name: str, token: str = "0" * 8) -> str:
    """The name under which what will be ``name`` is written."""
    return f".{name}.{token}.part"


class Part:
    """What will be ``target`` once it is whole: ``begin``, fill ``new`` (a file, or the folder that ``begin``
    has made), ``commit``; ``discard`` at the end in any case.

    ``token``: 8 hex digits that several processes of one run agree on, which see to it that no other run is
    there; None: random ones. ``private``: a new file is the user's alone, else it has what the umask gives.
    """

    def __init__(self, target: Path, token: str | None = None, *, private: bool = False) -> None:
        self.target, self._token, self._private = target, token, private
        self._held: int | None = None
        self._made = False
        self._name(token or "")

    def _name(self, token: str) -> None:
        self.folder = self.target.with_name(part_name(self.target.name, token))
        self.new = self.folder / _NEW

    def begin(self, *, folder: bool = False) -> None:
        """Make the part, in a folder that is there, and remove what dead writers have left in it. ``folder``:
        make ``new`` as well. Raises OSError."""
        sweep(self.target.parent)
        while self._held is None:
            self._name(self._token or os.urandom(4).hex())
            self.folder.mkdir(0o700 if self._private else 0o777)
            self._made = True
            with suppress(FileNotFoundError):  # swept before it was locked: once more
                self._held = _hold(self.folder / _LOCK, 0o600 if self._private else 0o666)
        if folder:
            self.new.mkdir()

    def commit(self, *, durable: bool = False, fresh: bool = False) -> None:
        """Give ``new`` the name of the target, in place of what has it now; ``fresh``: only of an empty
        folder, else FileExistsError. Raises OSError."""
        folder = self.new.is_dir()
        if not folder:
            _set_mode(self.new, self.target if self.target.exists() else self.folder / _LOCK)
        else:  # parts within it that could not be removed: what looks for viruses held one open
            for one in [self.new, *(path for path in self.new.rglob("*") if path.is_dir())]:
                sweep(one)
        if durable:
            for path in sorted(self.new.rglob("*")) if folder else ():
                sync(path)
            sync(self.new)
        if fresh:
            _rename_fresh(self.new, self.target)
        elif folder:
            _rename_folder(self.new, self.target, self.folder / _OLD)
        else:
            os.replace(self.new, self.target)
        if durable:
            sync(self.target.parent)

    def discard(self) -> None:
        """Remove what is left of the part; never an error."""
        held, self._held = self._held, None
        if held is not None and _WINDOWS:
            os.close(held)
        if self._made:
            with suppress(OSError):
                _remove(self.folder, self.target)
        if held is not None and not _WINDOWS:
            os.close(held)


def sweep(folder: Path) -> None:
    """Remove this user's parts in ``folder`` whose writers are dead; where one died between two renames, end
    what it began. Never an error. Where files cannot be locked, what is a day old is taken for dead."""
    with suppress(OSError):
        for part in folder.iterdir():
            if (named := _PART.fullmatch(part.name)) is not None:
                with suppress(OSError):
                    _sweep(part, folder / named[1])


def _sweep(folder: Path, target: Path) -> None:
    # In a folder that all may write to, others may have put a link there to a folder of this user's.
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or (not _WINDOWS and found.st_uid != os.geteuid()):
        return
    file = folder / _LOCK
    try:
        held = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        folder.rmdir()  # an empty one: whoever is about to lock it makes another
        return
    try:
        try:
            dead = try_lock(held, wait=False)
        except OSError:
            dead = time.time() - os.fstat(held).st_mtime > _DEAD_AFTER
        if dead and not _WINDOWS:
            _remove(folder, target)
    finally:
        os.close(held)
    if dead and _WINDOWS:
        _remove(folder, target)


def _remove(folder: Path, target: Path) -> None:
    """Remove a part, after it has given ``target`` back what was taken from there. Raises OSError."""
    new, old = folder / _NEW, folder / _OLD
    if old.exists() and not target.exists():
        with suppress(OSError):
            os.rename(new if new.exists() else old, target)
        if not target.exists():
            return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()
    # Last: whoever is killed before leaves a part that is known to be dead.
    (folder / _LOCK).unlink(missing_ok=True)
    folder.rmdir()


def _hold(file: Path, mode: int) -> int:
    """Make ``file`` and lock it. Raises FileNotFoundError where ``sweep`` was quicker."""
    held = os.open(file, os.O_RDWR | os.O_CREAT, mode)
    try:
        with suppress_no_locks():
            try_lock(held, wait=True)
        if not os.path.samestat(os.fstat(held), os.stat(file)):
            raise FileNotFoundError(file)
    except BaseException:
        os.close(held)
        raise
    return held


def _set_mode(file: Path, like: Path) -> None:
    mode, wanted = stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(like.stat().st_mode)
    if mode != wanted:  # some writers give their files to the user alone
        file.chmod(wanted)


def _rename_folder(new: Path, target: Path, old: Path) -> None:
    """Put ``new`` in the place of ``target``: at once where the system can; else in two renames, of which
    ``sweep`` makes up for a missing second one."""
    if not target.is_dir():
        os.replace(new, target)
    elif not _swapped(new, target):
        os.rename(target, old)
        os.rename(new, target)


def _rename_fresh(new: Path, target: Path) -> None:
    """Give ``new`` a name that nothing has, nor gets meanwhile (an empty folder is as good as nothing to a
    folder; on a file system without hard links a file may come between, for a moment). Raises OSError."""
    try:
        if new.is_dir():
            if _WINDOWS:
                with suppress(OSError):
                    target.rmdir()
            os.rename(new, target)
            return
        try:
            os.link(new, target)
        except OSError:  # it is there, or the file system has no links
            if os.path.lexists(target):
                raise
            os.rename(new, target)
    except OSError as error:
        if not os.path.lexists(target):
            raise
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error


def _swapped(one: Path, other: Path) -> bool:
    """Exchange two names at once; False where the system cannot."""
    import ctypes

    try:
        library = ctypes.CDLL(None, use_errno=True)
        first, second = os.fsencode(one), os.fsencode(other)
        if sys.platform == "darwin":
            return bool(library.renamex_np(first, second, 2) == 0)  # RENAME_SWAP
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return bool(library.renameat2(here, first, here, second, exchange) == 0)
    except (OSError, AttributeError, TypeError):
        return False


@contextmanager
def writing_path(
    path: Path, *, durable: bool = False, private: bool = False, fresh: bool = False
) -> Iterator[Path]:
    """A name in a part, not there yet, for what writes files by their names: at the end it becomes ``path``,
    whose folder is there; it is removed where anything is raised. ``fresh``: see ``commit``. Raises
    OSError."""
    part = Part(path, private=private)
    try:
        part.begin()
        yield part.new
        part.commit(durable=durable, fresh=fresh)
    finally:
        part.discard()


@contextmanager
def writing_folder(target: Path, *, durable: bool = False, fresh: bool = False) -> Iterator[Path]:
    """A new folder, which at the end takes the place of ``target`` whole, and is removed where anything is
    raised. What else is put beside it goes away with it. ``fresh``: see ``commit``. Raises OSError."""
    part = Part(target)
    try:
        part.begin(folder=True)
        yield part.new
        part.commit(durable=durable, fresh=fresh)
    finally:
        part.discard()


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """Make a folder, and those above it, for what will be written into it: where anything is raised, those
    that are new and empty go again. Raises OSError."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for one in made:
            with suppress(OSError):  # something is in it
                one.rmdir()
        raise


@contextmanager
def writing(path: Path, *, durable: bool = False, private: bool = False) -> Iterator[BinaryIO]:
    """A new file, which at the end takes the name ``path``, and is removed where anything is raised. A link
    is followed; what is no file (a terminal, a pipe) is written to as it is. Raises OSError."""
    if _is_stream(path):
        with _naming(path), path.open("wb") as out:
            yield out
        return
    # The file is closed before it is renamed: what a full disk refuses shows before.
    with (
        _naming(path),
        writing_path(Path(os.path.realpath(path)), durable=durable, private=private) as part,
        part.open("xb") as out,
    ):
        yield out


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of writing, which have no name, get that of the file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _REFUSED:
            error.filename = str(path)
        raise


def check_writing(path: Path) -> None:
    """Raise OSError where ``writing`` would be refused; leaves nothing behind. For what is written after
    long work."""
    if _is_stream(path):
        with path.open("ab"):
            return
    part = Part(Path(os.path.realpath(path)))
    try:
        part.begin()
    finally:
        part.discard()


def _is_stream(path: Path) -> bool:
    folder = os.path.realpath(path.parent)
    if folder == "/dev" or folder.startswith(("/proc/", "/dev/fd")):
        return True  # standard output may be a file, too: its name is not ours to take
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def remove_folder(folder: Path) -> None:
    """Remove a folder: its name goes first, so that nobody takes what is left of it for a whole one. Raises
    OSError."""
    part = Part(folder)
    try:
        part.begin()
        os.rename(folder, part.folder / _GONE)
    finally:
        part.discard()


def write_file(path: Path, data: bytes | str, *, durable: bool = False) -> None:
    """Write a whole file (text as UTF-8), or none. Raises OSError."""
    with writing(path, durable=durable) as out:
        out.write(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any, *, indent: int = 1, durable: bool = False) -> None:
    """Write a value as JSON and a line end. Raises OSError, ValueError for numbers that are not finite."""
    write_file(path, json_text(value, indent=indent) + "\n", durable=durable)


def growing(path: Path, *, anew: bool = False) -> BinaryIO:
    """A file that grows over several calls, open at its end; ``anew``: emptied first. Raises OSError, also
    where another has put a link (or a pipe) in its place: nothing is written elsewhere."""
    way = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    way |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    held = os.open(path, way, 0o666)
    try:
        found = os.fstat(held)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise OSError(errno.EMLINK, "has another name, or is no file", str(path))
        if anew:
            os.ftruncate(held, 0)
        return os.fdopen(held, "ab")
    except BaseException:
        os.close(held)
        raise


def publish(part: Path, target: Path, *, durable: bool = False) -> None:
    """Give a whole file its name: one that grew over several calls, under a lock. Raises OSError."""
    if durable:
        sync(part)
    os.replace(part, target)
    if durable:
        sync(target.parent)


def sync(path: Path) -> None:
    """Have what is written to a file, or the names in a folder, reach the disk. Raises OSError."""
    if _WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
