"""Rows of tables in files, JSON lines and parquet, each with its place. One that is no JSON, or has a value
that Python has not, comes as the error that it is; one that does not decode is told to
``skip(reason, where)``."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from minicpm4.data.parquet_pages import MAX_PAGE, largest_page, values_in
from minicpm4.errors import ConfigError, UnsupportedError
from minicpm4.files import MAX_VALUES, UndecodableError, decode_text, parse_json

__all__ = ["UNDECODED", "Skip", "json_lines", "parquet_rows"]

MAX_LINE = 1 << 28  # bytes of a JSON line
MAX_BLANK = 1 << 20  # blank lines in a row: a megabyte of .gz holds a thousand million
# Rows of parquet in memory at a time: a dictionary gives each of them the same 64 MB by some bytes of file.
BATCH = 8
UNDECODED = "text that does not decode"
Skip = Callable[[str, str], None]


def json_lines(file: Path, skip: Skip) -> Iterator[tuple[str, Any]]:
    blank = 0
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
        for number, line in enumerate(_lines(stream, file), 1):
            where = f"{file}, line {number}"
            if len(line) > MAX_LINE:
                raise ConfigError(f"{where} has over {MAX_LINE:,} bytes", "is the file JSON lines?")
            if not line.strip():
                blank += 1
                if blank > MAX_BLANK:
                    raise ConfigError(f"{where} follows {MAX_BLANK:,} blank lines", "is the file JSON lines?")
                continue
            blank = 0
            try:
                text = line if isinstance(line, str) else decode_text(line)
            except UndecodableError as error:
                skip(UNDECODED, f"{where} is {error}")
                continue
            yield where, _parsed(text, where)


def _parsed(text: str, where: str) -> Any:
    """A line's JSON, or the error that it is none: the row is wrong, not the file."""
    try:
        # Other columns may well hold NaN: what writes such files often does.
        return parse_json(text, where, ConfigError, "the file may be cut short", constants=True)
    except ConfigError as error:
        return error


def _lines(stream: Any, file: Path) -> Iterator[bytes | str]:
    """Lines, cut where they are too long: as bytes, of a file in UTF-16 as text."""
    if stream.peek(2)[:2] not in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        while line := stream.readline(MAX_LINE + 1):
            yield line
        return
    wide = io.TextIOWrapper(stream, "utf-16", newline="\n")
    try:
        while text := wide.readline(MAX_LINE + 1):
            yield text
    except UnicodeError as error:  # where its next line begins, nothing tells
        raise ConfigError(f"{file} is not UTF-16, as it says: {error}", "save it as UTF-8") from error
    finally:
        wide.detach()


def parquet_rows(
    file: Path,
    column: str,
    skip: Skip,
    beside: Sequence[str] = (),
    see: Callable[[list[str]], object] = len,
) -> Iterator[tuple[str, Any]]:
    """Rows, of which ``column`` is read, and those columns of ``beside`` that there are; ``see`` is told the
    names of all columns."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UnsupportedError(
            f"{file} is parquet, which pyarrow reads, and that is not installed",
            "in the checkout: pip install -e '.[data]'",
        ) from error
    row = 0
    try:
        with ParquetFile(file) as table:
            names = table.schema_arrow.names
            if column not in names:
                has = ", ".join(names[:8])
                raise ConfigError(f"{file} has no column {column!r}, but {has[:200]}", "name the column")
            see(names)
            wanted = [column, *(name for name in beside if name in names and name != column)]
            if twice := [name for name in wanted if names.count(name) > 1]:
                raise ConfigError(f"{file} has more than one column {twice[0]!r}", "give each its own name")
            # A long text in a page of its own: few of these at a time.
            count = max(1, min(BATCH, MAX_PAGE // max(1, largest_page(file, table.metadata, wanted))))
            for batch in table.iter_batches(batch_size=count, columns=wanted):
                for index in range(batch.num_rows):
                    row += 1
                    where = f"{file}, row {row}"
                    try:
                        found = _row(batch, index, wanted, where)
                    except UndecodableError as error:
                        skip(UNDECODED, f"{where} is {error}")
                    except UnicodeError as error:
                        skip(UNDECODED, f"{where} is not UTF-8: {error}")
                    else:
                        yield where, found
    except ArrowException as error:
        raise ConfigError(f"{file} cannot be read as parquet: {error}", "it may be damaged") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} has a column whose name is not UTF-8: {error}", "give it another name, or it is damaged"
        ) from error


def _row(batch: Any, index: int, wanted: Sequence[str], where: str) -> Any:
    """A row of a batch, or the error that one of its values is none that Python has: a date in the year
    100,000, a table with two fields of one name."""
    found = {}
    for name in wanted:
        try:
            column = batch.column(name)
            if values_in(column.slice(index, 1)) > MAX_VALUES:
                return ConfigError(f"{where}: {name!r} holds over {MAX_VALUES:,} values", "leave it out")
            found[name] = _given(column[index].as_py())
        except (UndecodableError, UnicodeError):
            raise
        except (ValueError, OverflowError, LookupError) as error:
            return ConfigError(f"{where}: {name!r} cannot be read: {error}", "the file may be damaged")
    return found


def _given(value: Any) -> Any:
    """``value`` without what its tables do not have: parquet gives all of them all names, with nulls."""
    if isinstance(value, bytes):
        return decode_text(value)  # a column of strings that does not say so
    if isinstance(value, list):
        return [_given(item) for item in value]
    if isinstance(value, dict):
        return {
            name: _given(item)
            for name, item in value.items()
            if item is not None or (name == "content" and "role" in value)
        }
    return value
