"""Files of problems: JSON lines, packed by gzip or not."""

from __future__ import annotations

import gzip
import io
import json
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


def read_rows(
    file: Path, remedy: str, *, limit: int = MAX_BYTES, most: int = MAX_ROWS, constants: bool = False
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each line's table, and where it stands. Raises ConfigError, with the line, and where there are none, or
    more than ``most``, or more than ``limit`` bytes; ``constants``: as for ``parse_json``."""
    content = read_bytes(file, limit, ConfigError, remedy)
    if content[:2] == b"\x1f\x8b":
        content = _unpacked(content, file, limit)
    count = 0
    for number, line in enumerate(content.decode(errors="replace").split("\n"), 1):
        if line.strip():
            count += 1
            where = f"{file} line {number}"
            found = parse_json(line.encode(), where, ConfigError, remedy, constants=constants)
            require(isinstance(found, Mapping), f"{where} is no table", remedy)
            require(count <= most, f"{file} has more than {most:,} lines", "give a part of it")
            halved = "\\u" in line and not _is_unicode(found)
            require(not halved, f"{where} holds a lone surrogate", "write whole characters")
            yield where, found
    require(count > 0, f"{file} has no lines", remedy)


def check_text(row: Mapping[str, Any], name: str, where: str, remedy: str) -> str:
    """A field that is a text of 1 to MAX_CHARS characters. Raises ConfigError."""
    value = row.get(name)
    right = isinstance(value, str) and 0 < len(value) <= MAX_CHARS
    require(right, f"{where}: {name} is no text, or an empty one", remedy)
    return str(value)


def _is_unicode(value: Any) -> bool:
    """Whether its texts can be written: JSON may spell half of a pair of UTF-16."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _unpacked(content: bytes, file: Path, limit: int) -> bytes:
    try:
        with gzip.open(io.BytesIO(content)) as source:
            found = source.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{file} is no whole gzip file: {error}") from None
    require(len(found) <= limit, f"{file} is more than {limit:,} bytes unpacked", "give a part of it")
    return found
