"""Files of problems: JSON lines, packed by gzip or not."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minicpm4.config.strict import require
from minicpm4.errors import ConfigError
from minicpm4.files import parse_json, read_bytes

__all__ = ["check_text", "read_rows"]

MAX_BYTES = 64 << 20
MAX_ROWS = 100_000
MAX_CHARS = 1_000_000  # of a field


def read_rows(file: Path, remedy: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each line's table, and where it stands. Raises ConfigError, with the line, and where there are none, or
    more than MAX_ROWS."""
    content = read_bytes(file, MAX_BYTES, ConfigError, remedy)
    if content[:2] == b"\x1f\x8b":
        content = _unpacked(content, file)
    count = 0
    for number, line in enumerate(content.decode(errors="replace").split("\n"), 1):
        if line.strip():
            count += 1
            where = f"{file} line {number}"
            found = parse_json(line.encode(), where, ConfigError, remedy)
            require(isinstance(found, Mapping), f"{where} is no table", remedy)
            require(count <= MAX_ROWS, f"{file} has more than {MAX_ROWS:,} problems", "give a part of it")
            yield where, found
    require(count > 0, f"{file} has 0 problems", remedy)


def check_text(row: Mapping[str, Any], name: str, where: str, remedy: str) -> str:
    """A field that is a text of 1 to MAX_CHARS characters. Raises ConfigError."""
    value = row.get(name)
    right = isinstance(value, str) and 0 < len(value) <= MAX_CHARS
    require(right, f"{where}: {name} is no text, or an empty one", remedy)
    return str(value)


def _unpacked(content: bytes, file: Path) -> bytes:
    try:
        with gzip.open(io.BytesIO(content)) as source:
            found = source.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{file} is no whole gzip file: {error}") from None
    require(len(found) <= MAX_BYTES, f"{file} is more than {MAX_BYTES:,} bytes unpacked")
    return found
