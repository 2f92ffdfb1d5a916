"""Converted weights kept on disk, so that a large model is converted once and not at every start.

One file for each (checkpoint, ``weights`` choice, layout of the op table), in safetensors format, in the
user's cache. Its metadata hold the key it was made for: path, size, time and a digest of every file of the
checkpoint. A file that is damaged, of another key or not one of these is left aside, and the weights are
converted and kept anew; its arrays are checked as those of any file from a stranger are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minicpm4.config.strict import require
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.files import sweep
from minicpm4.formats import Checkpoint
from minicpm4.formats.quant import PackedTensor
from minicpm4.machine import human
from minicpm4.model.arena import Arena
from minicpm4.model.packed_file import Expected, PackedFile, ShareRead, nbytes, write
from minicpm4.places import cache_folder

__all__ = [
    "KeptFile",
    "WeightCache",
    "clear",
    "file_identity",
    "folder",
    "kept_files",
    "limit",
    "weight_cache",
]

logger = logging.getLogger("minicpm4")

VARIABLE = "MINICPM4_KEPT_WEIGHTS"  # a folder for these files; "off": keep and use none
LIMIT_VARIABLE = "MINICPM4_KEPT_WEIGHTS_LIMIT"  # GB of all files together
LIMIT = 20.0
REMOVED = f"minicpm4 models --clear-kept removes them, {VARIABLE}=off keeps none"
VERSION = 3  # of the file and of the arithmetic of conversion: raise it when that gives other numbers
SPARE = (2 << 30, 0.05)  # the disk keeps so many bytes free, and this share of it
PREFIX = "minicpm4-"  # of our files: others in the folder are left alone
_HASHED = 1 << 20  # bytes at either end of a checkpoint's file


def folder() -> Path | None:
    """Where the files are: $MINICPM4_KEPT_WEIGHTS, else ``weights`` beside the downloads; None: off."""
    return cache_folder("weights", VARIABLE)


def limit() -> int:
    """Bytes that all files may take together. Raises ConfigError."""
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    try:
        size = float(text or LIMIT)
    except ValueError:
        size = -1.0
    require(0 <= size < 1e9, f"{LIMIT_VARIABLE} = {text!r} is not a number of GB", "give one, such as 20")
    return int(size * 1e9)


def weight_cache(checkpoint: Checkpoint, weights: str, layout: str) -> WeightCache | None:
    """What is kept for these; None where nothing may be. Raises ConfigError."""
    place, most = folder(), limit()
    if place is None or not most or not checkpoint.files:
        return None
    try:
        files = [file_identity(file) for file in checkpoint.files]
    except OSError:
        return None  # the checkpoint's own reader says what is wrong
    # Path, choice and layout name the file; what else makes it valid is inside. So a changed
    # checkpoint replaces its file.
    named = json.dumps([[one["path"] for one in files], weights, layout])
    name = hashlib.sha256(named.encode()).hexdigest()[:32]
    key = {"version": VERSION, "files": files, "weights": weights, "layout": layout}
    return WeightCache(file=place / f"{PREFIX}{name}.safetensors", key=key, most=most)


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptFile:
    """One file: of which checkpoint, in which format and layout, its size and when it was last used."""

    file: Path
    source: str
    weights: str
    layout: str
    nbytes: int
    used: float


def kept_files() -> list[KeptFile]:
    """All readable ones, the latest used first."""
    place = folder()
    found = []
    for file in place.glob(f"{PREFIX}*.safetensors") if place is not None else ():
        with suppress(OSError, CheckpointError, KeyError, TypeError, IndexError), file.open("rb") as data:
            stat = os.fstat(data.fileno())
            key = PackedFile(data, file).key
            source, weights, layout = (
                str(part) for part in (key["files"][0]["path"], key["weights"], key["layout"])
            )
            found.append(
                KeptFile(
                    file=file,
                    source=source,
                    weights=weights,
                    layout=layout,
                    nbytes=stat.st_size,
                    used=stat.st_mtime,
                )
            )
    return sorted(found, key=lambda one: -one.used)


def clear() -> tuple[int, int]:
    """Remove all files; return how many, and their bytes. Raises ConfigError."""
    place = folder()
    count = size = 0
    for file in _files(place) if place is not None else []:
        try:
            nbytes = file.stat().st_size
            file.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"cannot remove {file}: {error.strerror}") from error
        count, size = count + 1, size + nbytes
    return count, size


@dataclass(slots=True)
class WeightCache:
    """The kept weights of one checkpoint, in one format and layout. ``said``: what became of them."""

    file: Path
    key: Mapping[str, Any]
    most: int
    said: str = ""
    _ignored: str = field(default="", init=False)

    def load(self, expected: Expected, progress: ShareRead | None = None) -> dict[str, PackedTensor]:
        """The kept matrices, by name; none where there is no usable file. ``expected(name, spec, shape)``
        says whether the model has a place for such a matrix; ``progress`` is called with the share read."""
        try:
            with self.file.open("rb", buffering=0) as data:
                kept = PackedFile(data, self.file)
                if kept.key != self.key:
                    raise CheckpointError("they are of other files, or of another version")
                began = time.perf_counter()
                found = kept.read(Arena(), expected, progress)
            seconds, size = time.perf_counter() - began, nbytes(found)
            self.said = f"kept ones, {size / 1e6:,.0f} MB read in {seconds:.2f} s"
            with suppress(OSError):
                os.utime(self.file)  # what was used last is removed last
            return found
        except FileNotFoundError:
            return {}
        except (OSError, CheckpointError) as error:
            why = error.condition if isinstance(error, CheckpointError) else error.strerror
            self._ignored = f"kept weights ignored: {why}".replace(f"{self.file}", "the file") + "; "
            self.said = self._ignored.removesuffix("; ")
            return {}

    def save(self, tensors: Mapping[str, PackedTensor], seconds: float) -> None:
        """Keep what took ``seconds`` to convert, if there is room; never an error. Holds no copy."""
        self.said = f"{self._ignored}converted in {seconds:.1f} s, "
        size = nbytes(tensors)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # Another process may have been faster.
            there = not self._ignored and self.kept_nbytes() is not None
            why = "" if there else self._make_room(size)
            if not why and not there:
                write(self.file, self.key, tensors)
                said = "converted weights are kept for the next start: %s in %s (%s)"
                logger.warning(said, human(size), self.file.parent, REMOVED)  # once: then they are there
        except OSError as error:
            why = f"cannot write {self.file.parent}: {error.strerror}"
        self.said += f"not kept: {why}" if why else f"kept for the next start ({size / 1e6:,.0f} MB)"

    def kept_nbytes(self) -> int | None:
        """Size of the file; None where there is none for this key whose header is whole."""
        with suppress(OSError, CheckpointError), self.file.open("rb", buffering=0) as data:
            if PackedFile(data, self.file).key == self.key:
                return os.fstat(data.fileno()).st_size
        return None

    def _make_room(self, size: int) -> str:
        """Remove the files that were used longest ago, as far as must be; return why it is not enough."""
        if size > self.most:
            return f"{size / 1e9:.1f} GB are more than {LIMIT_VARIABLE} = {self.most / 1e9:g}"
        place = self.file.parent
        kept = sorted(
            ((stat.st_mtime, stat.st_size, file) for file, stat in _stats(place) if file != self.file),
            reverse=True,
        )
        total = size
        for _, each, file in kept:
            total += each
            if total > self.most:
                with suppress(OSError):  # in use elsewhere, on Windows
                    file.unlink()
        disk = shutil.disk_usage(place)
        if disk.free - size < max(SPARE[0], SPARE[1] * disk.total):
            return f"the disk has {disk.free / 1e9:.1f} GB left"
        return ""


def _files(place: Path) -> list[Path]:
    """Our files in ``place``; what dead processes left half written there is removed."""
    sweep(place)
    return [*place.glob(f"{PREFIX}*.safetensors")]


def _stats(place: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Our files in ``place``, those that can be looked at."""
    for file in _files(place):
        with suppress(OSError):
            yield file, file.stat()


def file_identity(file: Path) -> dict[str, Any]:
    """What tells one version of a file from another. Raises OSError."""
    with file.open("rb") as data:
        stat = os.fstat(data.fileno())
        digest = hashlib.sha256(data.read(_HASHED))
        if stat.st_size > 2 * _HASHED:
            data.seek(-_HASHED, os.SEEK_END)
        digest.update(data.read(_HASHED))
    return {
        "path": str(file.resolve()),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "digest": digest.hexdigest()[:32],
    }
