"""Reading the small files beside a checkpoint, with their sizes bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minicpm4.errors import TextError

__all__ = ["read_bytes", "read_json", "read_text"]


def read_bytes(file: Path, limit: int) -> bytes:
    """The content of ``file``. Raises TextError when it cannot be read or is over ``limit`` bytes."""
    try:
        size = file.stat().st_size
        if size > limit:
            raise TextError(f"{file} has {size} bytes, the limit is {limit}")
        return file.read_bytes()
    except OSError as error:
        raise TextError(f"cannot read {file}: {error.strerror or error}") from error


def read_text(file: Path, limit: int) -> str:
    """The content of ``file``, which must be UTF-8. Raises TextError."""
    try:
        return read_bytes(file, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from error


def read_json(file: Path, limit: int = 16 << 20) -> dict[str, Any]:
    """The table in ``file``; empty when there is no such file. Raises TextError."""
    if not file.is_file():
        return {}
    try:
        table = json.loads(read_text(file, limit))
    except (ValueError, RecursionError) as error:
        raise TextError(f"{file} is not JSON: {error}", "fetch the file again: it may be damaged") from error
    if not isinstance(table, dict):
        raise TextError(f"{file} holds a {type(table).__name__}, not a table")
    return table
