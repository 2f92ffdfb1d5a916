"""How large the pages of a parquet file say they are, read before any is unpacked: pyarrow reads a page
whole, and one of 1.5 GB may take 48 kB of the file; and how many values stand in a row: a thousand million
take no kilobyte. Where pages begin is read here as well: asked for it, pyarrow ends the process where a
column's statistics of sizes are not as many as they must be."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from minicpm4.errors import ConfigError

__all__ = ["MAX_PAGE", "largest_page", "values_in"]

MAX_PAGE = 1 << 28  # bytes: as many as a document of 2**26 characters may take
MAX_NESTED = 1 << 26  # values of lists in a group of rows, which may all be in one row: 10 bytes each
_USUAL, _LONGEST = 1 << 12, 1 << 24  # bytes of a header: most, and all that pyarrow reads; of a footer
_DEEPEST = 16  # structs and lists within each other; there are ten
# Fields of a page's header and of those in it; of the footer, a group of rows, a column in it, its metadata.
_UNPACKED, _PACKED, _HEADERS, _COUNT = 2, 3, (5, 8), 1
_GROUPS, _CHUNKS, _ABOUT, _SIZE, _FIRST, _WORDS = 4, 1, 3, 7, 9, 11
_END = 8  # bytes behind the footer: its length and "PAR1"
# Of Thrift's compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_DAMAGED = (EOFError, OverflowError, ValueError, LookupError, TypeError, AttributeError)


def largest_page(file: Path, metadata: Any, columns: Sequence[str]) -> int:
    """Bytes of the largest page of ``columns``, unpacked. Raises ConfigError for one of more than MAX_PAGE,
    for lists of more than MAX_NESTED values and for a damaged header, OSError."""
    largest, nested, group = 0, 0, 0
    with file.open("rb") as data:
        for name, place, end, number, lists in _chunks(data, file, metadata, columns):
            if number != group:
                nested, group = 0, number
            while place < end:
                length, packed, unpacked, count = _sizes(data, place, file)
                nested += count if lists else 0
                if nested > MAX_NESTED:
                    raise ConfigError(
                        f"{file}: {name!r} has over {MAX_NESTED:,} values in a group of rows",
                        "write it with smaller groups of rows",
                    )
                if unpacked > MAX_PAGE:
                    raise ConfigError(
                        f"{file}: a page of {name!r} is {unpacked:,} bytes, at most "
                        f"{MAX_PAGE:,} are read at a time",
                        "cut its documents, or write it with smaller pages",
                    )
                largest = max(largest, unpacked)
                place += length + packed
    return largest


def values_in(column: Any) -> int:
    """How many values a column of rows holds, those of its lists and tables too: as objects of Python they
    take a hundred times what they take here."""
    if hasattr(column, "field"):  # a table: with its names
        return len(column) + sum(map(values_in, column.flatten()))
    return len(column) + (values_in(column.flatten()) if hasattr(column, "flatten") else 0)


def _chunks(
    data: BinaryIO, file: Path, metadata: Any, columns: Sequence[str]
) -> Iterator[tuple[str, int, int, int, bool]]:
    """Of each chunk of ``columns`` its name, where its pages begin and end, the number of its group of rows,
    and whether lists are in it."""
    leaves = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    wanted = [
        (number, leaf.path, leaf.max_repetition_level > 0)
        for number, leaf in enumerate(leaves)
        if any(f"{leaf.path}.".startswith(f"{name}.") for name in columns)
    ]
    try:
        for group, rows in enumerate(_footer(data, file)[_GROUPS]):
            for number, path, lists in wanted:
                about = rows[_CHUNKS][number][_ABOUT]
                first, words = about[_FIRST], about.get(_WORDS, 0)  # of its dictionary
                place = words if 0 < words < first else first
                if place < 0 or about[_SIZE] < 0:
                    raise ValueError
                yield path, place, place + about[_SIZE], group, lists
    except ConfigError:
        raise
    except _DAMAGED as error:
        raise ConfigError(
            f"{file} cannot be read as parquet: its footer is not understood", "it may be damaged"
        ) from error


def _footer(data: BinaryIO, file: Path) -> dict[int, Any]:
    """The fields of a file's metadata. Raises ConfigError where they are too long, EOFError, OverflowError,
    ValueError."""
    data.seek(-_END, os.SEEK_END)
    length = int.from_bytes(data.read(4), "little")
    if length > _LONGEST:
        raise ConfigError(
            f"{file} has a footer of {length:,} bytes, at most {_LONGEST:,} are read",
            "write it with larger groups of rows, or as several files",
        )
    data.seek(-_END - length, os.SEEK_END)
    found = dict[int, Any]()
    _struct(BytesIO(data.read(length)), 0, found)
    return found


def _sizes(data: BinaryIO, place: int, file: Path) -> tuple[int, int, int, int]:
    """Bytes of the header at ``place`` and of its page, packed and unpacked, and the page's values (of a
    dictionary none)."""
    try:
        try:
            length, found = _header(data, place, _USUAL)
        except (EOFError, OverflowError):
            length, found = _header(data, place, _LONGEST)
        packed, unpacked = found[_PACKED], found[_UNPACKED]
        count = sum(found[field][_COUNT] for field in _HEADERS if field in found)
        if packed < 0 or unpacked < 0 or count < 0:
            raise ValueError
    except _DAMAGED as error:
        raise ConfigError(
            f"{file} cannot be read as parquet: a page's header is not understood", "it may be damaged"
        ) from error
    return length, packed, unpacked, count


def _header(data: BinaryIO, place: int, most: int) -> tuple[int, dict[int, Any]]:
    """How long a header is, and its fields. Raises EOFError where it is longer than ``most``, OverflowError,
    ValueError."""
    data.seek(place)
    header, found = BytesIO(data.read(most)), dict[int, Any]()
    _struct(header, 0, found)
    return header.tell(), found


def _struct(data: BinaryIO, depth: int, found: dict[int, Any]) -> None:
    """Read a struct; ``found`` gets its whole numbers, structs and lists by field. Raises EOFError,
    ValueError."""
    field = 0
    while head := _byte(data):
        field = field + (head >> 4) if head >> 4 else _signed(data)
        kind = head & 15
        if kind not in (_TRUE, _FALSE):  # whose value is the kind
            value = _value(data, kind, depth)
            if value is not None:
                found[field] = value


def _value(data: BinaryIO, kind: int, depth: int) -> int | dict[int, Any] | list[Any] | None:
    """Read a value; None: no whole number, struct or list. Raises EOFError, ValueError."""
    if depth > _DEEPEST:
        raise ValueError("too deep")
    if kind in (_TRUE, _FALSE, _BYTE):  # of a list
        return _byte(data)
    if _BYTE < kind < _DOUBLE:
        return _signed(data)
    if kind == _DOUBLE:
        if len(data.read(8)) < 8:
            raise EOFError
    elif kind == _BINARY:
        data.seek(_varint(data), 1)
    elif kind in (_LIST, _SET):
        head = _byte(data)
        count = _varint(data) if head >> 4 == 15 else head >> 4
        return [_value(data, head & 15, depth + 1) for _ in range(count)]
    elif kind == _STRUCT:
        inner: dict[int, Any] = {}
        _struct(data, depth + 1, inner)
        return inner
    else:  # maps, which no header has
        raise ValueError(f"a value of kind {kind}")
    return None


def _byte(data: BinaryIO) -> int:
    one = data.read(1)
    if not one:
        raise EOFError
    return one[0]


def _varint(data: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        one = _byte(data)
        value |= (one & 127) << shift
        if one < 128:
            return value
    raise ValueError("a number of more than 64 bits")


def _signed(data: BinaryIO) -> int:
    value = _varint(data)
    return (value >> 1) ^ -(value & 1)
