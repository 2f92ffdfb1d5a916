"""Where a model may be written: known before one is made."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from minicpm4.errors import CheckpointError
from minicpm4.files import part_name

__all__ = ["obstacle", "require_free", "require_new"]


def require_free(folder: Path) -> None:
    """Raise CheckpointError unless a model can be written to ``folder``: no weights are there, and the place
    can be written to. Nothing stays that was made to see that."""
    remedy = "name a place that is not there yet"
    if any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} holds weights already", remedy)
    found = obstacle(folder) or _too_long(folder)
    if found:
        raise CheckpointError(f"cannot write to {folder}: {found}", remedy)


def require_new(folder: Path) -> None:
    """Raise CheckpointError unless ``folder`` is not there, or empty: its place is taken whole."""
    remedy = "name a folder that is not there yet"
    real = folder.resolve()
    if real == Path.cwd():
        raise CheckpointError(f"{folder} is the folder that this runs in", "name a folder in it")
    try:
        if real.is_mount():
            raise CheckpointError(f"{folder} is where another disk begins", "name a folder in it")
        inside = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {error.strerror}", remedy) from error
    if inside:
        raise CheckpointError(f"{folder} is not empty: {inside[0]} is in it", remedy)


def _too_long(folder: Path) -> str:
    """What keeps ``folder`` from being written under the longer name that it has until it is whole."""
    real = Path(os.path.realpath(folder))
    there = next((place for place in real.parents if place.exists()), real)
    try:
        (there / part_name(real.name)).stat()
    except OSError as error:
        return error.strerror or str(error) if error.errno == errno.ENAMETOOLONG else ""
    return ""


def obstacle(folder: Path) -> str:
    """What keeps files from being written to ``folder``, or it from being made; empty: nothing that can be
    seen beforehand. A folder is made where it would be, and removed: there are places (/proc) whose
    permissions say that anything may be."""
    try:
        folder.stat()  # which sees loops of links, and names that are too long
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        return error.strerror or str(error)
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except OSError as error:
        return error.strerror or str(error)
    if not there.is_dir():
        return os.strerror(errno.EEXIST if there == folder else errno.ENOTDIR)
    if not os.access(there, os.W_OK | os.X_OK):
        return os.strerror(errno.EACCES)
    try:
        Path(tempfile.mkdtemp(prefix=".minicpm4-", dir=there)).rmdir()
    except OSError as error:
        return error.strerror or str(error)
    return ""
