"""Checksums of a folder's files in a manifest beside them: damage is told where it is read.

``checksums.json`` has the sha256 of every 16 MiB of a file, so a reader who maps it checks what it reads,
once, and nothing else. Files stay what they are without it: without a manifest nothing is checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minicpm4.errors import CheckpointError
from minicpm4.files.reading import read_json
from minicpm4.files.whole import write_json

__all__ = ["CHECKSUMS", "FileSums", "file_sha256", "read_checksums", "write_checksums"]

CHECKSUMS = "checksums.json"
BLOCK = 16 << 20
_PIECE = 1 << 18  # bytes of a file that are in memory at a time
MAX_CHECKSUMS = 1 << 27
VERSION = 1
_REMEDY = f"fetch or write it again; where it was changed on purpose, remove {CHECKSUMS} beside it"


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write the manifest of these files, which are in ``folder``. Raises OSError."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _sums(folder / name)} for name in names
    }
    write_json(folder / CHECKSUMS, {"version": VERSION, "block": BLOCK, "files": files}, durable=True)


def _sums(file: Path) -> list[str]:
    found = []
    with file.open("rb") as stream:
        while piece := stream.read(min(_PIECE, BLOCK)):
            block, left = hashlib.sha256(piece), BLOCK - len(piece)
            while left and (piece := stream.read(min(_PIECE, left))):
                block.update(piece)
                left -= len(piece)
            found.append(block.hexdigest())
    return found


def read_checksums(folder: Path) -> dict[str, FileSums]:
    """What the manifest of ``folder`` says, by file; nothing where there is none. Raises CheckpointError."""
    where = folder / CHECKSUMS
    table = read_json(
        where, MAX_CHECKSUMS, CheckpointError, f"remove {where} to read unchecked", optional=True
    )
    if not table:
        return {}
    files = table.get("files")
    if table.get("version") != VERSION or table.get("block") != BLOCK or not isinstance(files, dict):
        raise CheckpointError(
            f"{where} is no manifest of version {VERSION}", f"remove {where} to read unchecked"
        )
    outside = [name for name in files if set(name) & set("\\:\0") or {"", ".", ".."} & set(name.split("/"))]
    if outside:
        raise CheckpointError(f"{where} tells of {outside[0]!r:.100}, which is not in {folder}", _REMEDY)
    return {name: FileSums.of(folder / name, entry) for name, entry in files.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSums:
    """What a file is to hold. ``checked``: the blocks that were found right."""

    path: Path
    size: int
    sums: tuple[str, ...]
    checked: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, path: Path, entry: Any) -> FileSums:
        """As a manifest has it. Raises CheckpointError."""
        size, sums = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        if not isinstance(sums, list) or type(size) is not int or size < 0 or len(sums) != -(-size // BLOCK):
            raise CheckpointError(f"{CHECKSUMS} does not describe {str(path)!r:.200}", _REMEDY)
        return cls(path=path, size=size, sums=tuple(map(str, sums)))

    def check(self, content: memoryview, offset: int = 0, nbytes: int | None = None) -> None:
        """Raise CheckpointError unless these bytes of ``content``, all of the file, are what was written;
        those around them, up to whole blocks, are looked at as well."""
        if len(content) != self.size:
            raise CheckpointError(f"{self.path} has {len(content)} bytes, {self.size} were written", _REMEDY)
        end = self.size if nbytes is None else offset + nbytes
        for block in range(offset // BLOCK, -(-end // BLOCK)):
            if block in self.checked:
                continue
            start = block * BLOCK
            if hashlib.sha256(content[start : start + BLOCK]).hexdigest() != self.sums[block]:
                stop = min(start + BLOCK, self.size)
                raise CheckpointError(
                    f"{self.path} is damaged: bytes {start} to {stop - 1} are not what was written", _REMEDY
                )
            self.checked.add(block)

    def check_file(self) -> None:
        """``check`` of a small file, read whole. Raises CheckpointError."""
        try:
            with self.path.open("rb") as stream:
                content = stream.read(self.size + 1)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror or error}", _REMEDY) from error
        self.check(memoryview(content))


def file_sha256(file: Path) -> str:
    """The sha256 of a whole file. Raises OSError."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
