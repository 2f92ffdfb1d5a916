"""How large the pages of a parquet file say they are, read before any is unpacked: pyarrow reads a page
whole, and one of 1.5 GB may take 48 kB of the file; and how many values stand in a row: a thousand million
take no kilobyte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from minicpm4.errors import ConfigError

__all__ = ["MAX_PAGE", "largest_page", "values_in"]

MAX_PAGE = 1 << 28  # bytes: as many as a document of 2**26 characters may take
MAX_NESTED = 1 << 26  # values of lists in a group of rows, which may all be in one row: 10 bytes each
_USUAL, _LONGEST = 1 << 12, 1 << 24  # bytes of a header: most, and all that pyarrow reads
_DEEPEST = 8  # structs within each other in a header; there are three
_UNPACKED, _PACKED, _HEADERS, _COUNT = 2, 3, (5, 8), 1  # fields of a page's header, and of those in it
# Of Thrift's compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12


def largest_page(file: Path, metadata: Any, columns: Sequence[str]) -> int:
    """Bytes of the largest page of ``columns``, unpacked. Raises ConfigError for one of more than MAX_PAGE,
    for lists of more than MAX_NESTED values and for a damaged header, OSError."""
    largest, nested, group = 0, 0, 0
    with file.open("rb") as data:
        for chunk, number, lists in _chunks(metadata, columns):
            if number != group:
                nested, group = 0, number
            place = _first(chunk)
            end = place + chunk.total_compressed_size
            while place < end:
                length, packed, unpacked, count = _sizes(data, place, file)
                nested += count if lists else 0
                if nested > MAX_NESTED:
                    raise ConfigError(
                        f"{file}: {chunk.path_in_schema!r} has over {MAX_NESTED:,} values in a group of rows",
                        "write it with smaller groups of rows",
                    )
                if unpacked > MAX_PAGE:
                    raise ConfigError(
                        f"{file}: a page of {chunk.path_in_schema!r} is {unpacked:,} bytes, at most "
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


def _chunks(metadata: Any, columns: Sequence[str]) -> Iterator[tuple[Any, int, bool]]:
    """Each with the number of its group of rows, and whether lists are in it."""
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            if any(f"{chunk.path_in_schema}.".startswith(f"{name}.") for name in columns):
                yield chunk, group, metadata.schema.column(number).max_repetition_level > 0


def _first(chunk: Any) -> int:
    """Where its first page begins."""
    first, words = chunk.data_page_offset, chunk.dictionary_page_offset if chunk.has_dictionary_page else 0
    return int(words if words and 0 < words < first else first)


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
    except (EOFError, OverflowError, ValueError, KeyError, TypeError) as error:
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
    """Read a struct; ``found`` gets its whole numbers and structs by field. Raises EOFError, ValueError."""
    field = 0
    while head := _byte(data):
        field = field + (head >> 4) if head >> 4 else _signed(data)
        kind = head & 15
        if kind not in (_TRUE, _FALSE):  # whose value is the kind
            value = _value(data, kind, depth)
            if value is not None:
                found[field] = value


def _value(data: BinaryIO, kind: int, depth: int) -> int | dict[int, Any] | None:
    """Read a value; None: neither a whole number nor a struct. Raises EOFError, ValueError."""
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
        for _ in range(_varint(data) if head >> 4 == 15 else head >> 4):
            _value(data, head & 15, depth + 1)
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
