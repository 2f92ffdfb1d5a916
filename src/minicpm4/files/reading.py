"""Small files of strangers, read within bounds. The caller names the error, all say it in one form."""

from __future__ import annotations

import json
import math
import os
import re
from itertools import islice
from pathlib import Path
from typing import Any

from minicpm4.errors import Minicpm4Error
from minicpm4.files.encodings import UndecodableError, decode_text

__all__ = [
    "LFS_REMEDY",
    "MAX_VALUES",
    "is_lfs_pointer",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_text",
    "strict_json",
]

MAX_DIGITS = 300  # of an integer in JSON: a longer one has no place among floats, and none is meant
# In one text of JSON, 80 bytes of memory each: the largest vocabularies have half as many.
MAX_VALUES = 1 << 22
_MARKS = re.compile(r'"[^"]*"?|[\[{,:]')  # texts, and outside of them what values stand behind

LFS_REMEDY = "run `git lfs pull` in its folder, or download the file itself"
_LFS = b"version https://git-lfs.github.com/spec/"
_LFS_MOST = 1024  # bytes of a pointer, by its specification


def is_lfs_pointer(content: bytes | memoryview, size: int) -> bool:
    """Whether a file of ``size`` bytes that begins with ``content`` only says where Git LFS has the real
    one."""
    return size < _LFS_MOST and bytes(content[: len(_LFS)]) == _LFS


def read_bytes(file: Path, limit: int, error: type[Minicpm4Error], remedy: str = "") -> bytes:
    """The content of ``file``. Raises ``error`` where it cannot be read, is over ``limit`` bytes, or is a
    pointer of Git LFS."""
    try:
        with file.open("rb") as data:
            size = os.fstat(data.fileno()).st_size
            # As much memory is taken as is asked for. A pipe tells no size, and a file may have grown since.
            content = data.read(min(limit, size) + 1)
            while len(content) <= limit and (more := data.read(min(limit + 1 - len(content), 1 << 20))):
                content += more
    except OSError as why:
        raise error(f"cannot read {file}: {why.strerror or why}", remedy) from why
    if len(content) > limit:
        raise error(f"{file} has {max(size, len(content))} bytes, the limit is {limit}", remedy)
    if is_lfs_pointer(content, len(content)):
        raise error(f"{file} is a pointer of Git LFS, not the file itself", LFS_REMEDY)
    return content


def read_text(file: Path, limit: int, error: type[Minicpm4Error], remedy: str = "") -> str:
    """The content of ``file``: UTF-8, or as its byte-order mark says. Raises ``error``."""
    return _decode(read_bytes(file, limit, error, remedy), str(file), error, remedy)


def read_json(
    file: Path,
    limit: int,
    error: type[Minicpm4Error],
    remedy: str = "",
    *,
    optional: bool = False,
    constants: bool = False,
) -> dict[str, Any]:
    """The table in ``file``. ``optional``: one that is not there is empty; ``constants``: as for
    ``parse_json``. Raises ``error``."""
    if optional and not file.exists():
        return {}
    content = read_bytes(file, limit, error, remedy)
    value = parse_json(content, str(file), error, remedy, constants=constants)
    if not isinstance(value, dict):
        raise error(f"{file} holds a {type(value).__name__}, not a table", remedy)
    return value


def parse_json(
    content: bytes | str,
    where: str,
    error: type[Minicpm4Error],
    remedy: str = "",
    *,
    constants: bool = False,
    distinct: bool = False,
) -> Any:
    """The value in JSON, as text or bytes: UTF-8, or as their byte-order mark says.

    ``constants``: NaN and Infinity, which are no JSON, are taken; ``distinct``: a name that occurs twice in
    a table is refused. Raises ``error``, beginning with ``where``: for what is nested too deep, holds over
    MAX_VALUES values, or integers of over MAX_DIGITS digits, as well, and for 1e999, which Python reads as
    Infinity.
    """
    text = _decode(content, where, error, remedy) if isinstance(content, bytes) else content
    try:
        return strict_json(text, constants=constants, distinct=distinct)
    except RecursionError as why:
        raise error(f"{where} is nested too deep", remedy) from why
    except ValueError as why:
        raise error(f"{where} is not JSON: {why}", remedy) from why


def strict_json(text: bytes | str, *, constants: bool = False, distinct: bool = False) -> Any:
    """``parse_json`` for callers with errors of their own. Raises ValueError, RecursionError."""
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    _check_count(text)
    return json.loads(
        text,
        parse_int=_integer,
        parse_float=None if constants else _finite,
        parse_constant=None if constants else _refuse_constant,
        object_pairs_hook=_distinct if distinct else None,
    )


def _check_count(text: str) -> None:
    """Raises ValueError for over MAX_VALUES values, before any is made."""
    if len(text) <= MAX_VALUES or sum(map(text.count, "[{,:")) <= MAX_VALUES:
        return
    plain = text.replace("\\\\", "").replace('\\"', "")  # no quotes but those around texts
    # In JSON no two texts stand beside each other: among so many marks over half begin values.
    marks = islice(_MARKS.finditer(plain), 2 * MAX_VALUES + 2)
    if sum(mark[0][0] != '"' for mark in marks) > MAX_VALUES:
        raise ValueError(f"it holds over {MAX_VALUES:,} values")


def _decode(content: bytes, where: str, error: type[Minicpm4Error], remedy: str) -> str:
    try:
        return decode_text(content)
    except UndecodableError as why:
        raise error(f"{where} is {why}", remedy) from why


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer has {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text:.40} is more than a number of 64 bits holds")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table
