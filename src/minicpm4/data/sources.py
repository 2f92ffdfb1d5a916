"""Documents from files: text, JSON lines, parquet, HTML, and packages that carry documentation.

| kind | one document is | looked for in folders |
| --- | --- | --- |
| text | a file | .txt .md .rst |
| html | the text of a page | .html .htm .xhtml |
| jsonl | a line's ``column`` | .jsonl .jsonl.gz |
| chat | a line's ``column``: messages | .jsonl .jsonl.gz |
| parquet | a row's ``column`` | .parquet |
| package | a page or text file of ``apt:NAME`` or ``pip:NAME==VERSION`` | html and text |

What a filter of quality or a generator of new text will be is a function from documents to documents,
between ``texts`` and packing: nothing else needs to know of it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from minicpm4.config.strict import suggest
from minicpm4.data.html import VERSION as HTML_VERSION
from minicpm4.data.html import html_text
from minicpm4.data.packages import fetch_package
from minicpm4.errors import ConfigError, UnsupportedError

__all__ = ["KINDS", "conversations", "distinct", "files_of", "filter_hash", "hash_of", "split", "texts"]

MAX_TEXT = 1 << 26  # characters of a document
MAX_LINE = 1 << 28  # bytes of a JSON line
TEXT, PAGES = (".txt", ".md", ".rst"), (".html", ".htm", ".xhtml")
SUFFIXES = {
    "text": TEXT,
    "html": PAGES,
    "jsonl": (".jsonl", ".jsonl.gz"),
    "chat": (".jsonl", ".jsonl.gz"),
    "parquet": (".parquet",),
    "package": (*PAGES, *TEXT),
}
KINDS = tuple(SUFFIXES)
# Of pages that a program wrote: indexes and lists of links, in which there is nothing to read.
_NO_PROSE = ("genindex", "py-modindex", "search", "bookindex", "site-search", "toc", "print")
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell them alone, UTF-8 cannot
# Beside its pages Sphinx ships what they were made from: the same again. pip's own files are no reading.
_NO_DOCUMENT = re.compile(r"/_sources/|\.dist-info/")
LEAST_PAGE = 200  # characters; what is shorter is a menu or a forwarding page


def files_of(kind: str, paths: Sequence[str]) -> list[Path]:
    """Files that ``paths`` name, those of folders by their suffix, in order; packages are fetched.

    Raises ConfigError where there is none, UnsupportedError where a package cannot be had.
    """
    if kind not in SUFFIXES:
        raise ConfigError(f"corpus kind {kind!r} is unknown", suggest(kind, list(KINDS)))
    found: list[Path] = []
    for text in paths:
        path = fetch_package(text) if kind == "package" else Path(text).expanduser()
        if path.is_dir():
            inside = [p for p in path.rglob("*") if p.name.endswith(SUFFIXES[kind]) and p.is_file()]
            if kind == "package":
                inside = [p for p in inside if not _NO_DOCUMENT.search(p.as_posix()) and not p.is_symlink()]
            if not inside:
                raise ConfigError(
                    f"{path} has no files of kind {kind!r}", "it looks for " + ", ".join(SUFFIXES[kind])
                )
            found += sorted(inside)
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"{path} is neither a file nor a folder", "check its name")
    return found


def texts(kind: str, files: Iterable[Path], column: str = "text") -> Iterator[str]:
    """Documents that are not empty, in order. Raises ConfigError: which file, which line, what is wrong."""
    for file in files:
        try:
            for where, text in _texts_in(kind, file, column):
                if text.strip():
                    yield _bounded(text, where)
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"cannot read {file}: {error}", "check the file") from error


def conversations(files: Iterable[Path], column: str = "messages") -> Iterator[tuple[str, Any]]:
    """(where, messages) of each line of JSON lines; what the messages are worth is not looked at. Raises
    ConfigError."""
    for file in files:
        try:
            for where, table in _json_lines(file):
                yield where, _of_column(table, column, where)
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"cannot read {file}: {error}", "check the file") from error


def hash_of(files: Sequence[Path]) -> str:
    """Of the files' contents, in order."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def filter_hash(kind: str, *, distinct: bool = False, share: float = 0.0, held_out: bool = False) -> str:
    """Of all that decides which texts of files of this kind are taken, and how pages are read: for manifests.
    ``distinct``: without repetitions; ``share``, ``held_out``: as for ``split``."""
    settings: dict[str, Any] = {"distinct": distinct, "split": [share, held_out]}
    if kind in ("html", "package"):
        settings |= {"html": HTML_VERSION, "least_page": LEAST_PAGE, "no_prose": _NO_PROSE}
    if kind == "package":
        settings["no_document"] = _NO_DOCUMENT.pattern
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def distinct(documents: Iterable[str]) -> Iterator[str]:
    """Without those that are, white space aside, the same as an earlier one."""
    seen: set[bytes] = set()
    for text in documents:
        mark = _digest(" ".join(text.split()))
        if mark not in seen:
            seen.add(mark)
            yield text


def split(documents: Iterable[str], share: float, *, held_out: bool) -> Iterator[str]:
    """The documents held out (about ``share`` of all), or the others. A text's own hash decides, so equal
    texts are on one side, and neither order nor additions move any."""
    for text in documents:
        chance = int.from_bytes(_digest(text)[:8], "big") / 2**64
        if (chance < share) == held_out:
            yield text


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _texts_in(kind: str, file: Path, column: str) -> Iterator[tuple[str, str]]:
    if kind == "jsonl":
        for where, table in _json_lines(file):
            yield where, _text_of(table, column, where)
    elif kind == "parquet":
        yield from _parquet(file, column)
    elif file.name.endswith(PAGES) and kind != "text":
        page = html_text(_whole_file(file))
        if len(page) >= LEAST_PAGE and not file.stem.startswith(_NO_PROSE):
            yield str(file), page
    else:
        yield str(file), _whole_file(file)


def _whole_file(file: Path) -> str:
    size = file.stat().st_size
    if size > 4 * MAX_TEXT:
        raise ConfigError(f"{file} has {size:,} bytes", f"cut it: a document has at most {MAX_TEXT:,}")
    data = file.read_bytes()
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    return data.decode(encoding, "replace").replace("\r\n", "\n")


def _json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            where = f"{file}, line {number}"
            if len(line) > MAX_LINE:
                raise ConfigError(f"{where} has over {MAX_LINE:,} bytes", "is the file JSON lines?")
            if not line.strip():
                continue
            try:
                table = json.loads(line.decode("utf-8-sig", "replace"))
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{where} is not JSON: {error}", "the file may be cut short") from error
            yield where, table


def _of_column(table: Any, column: str, where: str) -> Any:
    if not isinstance(table, dict) or column not in table:
        has = ", ".join(map(repr, islice(table, 8))) if isinstance(table, dict) else "no columns"
        raise ConfigError(f"{where} has no {column!r}, but {has[:200]}", "name the column")
    return table[column]


def _text_of(table: Any, column: str, where: str) -> str:
    value = _of_column(table, column, where)
    if not isinstance(value, str):
        raise ConfigError(
            f"{where}: {column!r} is a {type(value).__name__}, not a text", "name another column"
        )
    return _SURROGATE.sub("\ufffd", value)


def _parquet(file: Path, column: str) -> Iterator[tuple[str, str]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UnsupportedError(
            f"{file} is parquet, which pyarrow reads, and that is not installed",
            "pip install 'minicpm4[data]'",
        ) from error
    row = 0
    try:
        with ParquetFile(file) as table:
            if column not in table.schema_arrow.names:
                has = ", ".join(table.schema_arrow.names[:8])
                raise ConfigError(f"{file} has no column {column!r}, but {has[:200]}", "name the column")
            for batch in table.iter_batches(batch_size=256, columns=[column]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    if value is not None:
                        yield f"{file}, row {row}", _text_of({column: value}, column, f"{file}, row {row}")
    except ArrowException as error:
        raise ConfigError(f"{file} cannot be read as parquet: {error}", "it may be damaged") from error


def _bounded(text: str, where: str) -> str:
    if len(text) > MAX_TEXT:
        raise ConfigError(
            f"{where} has {len(text):,} characters", f"cut it: a document has at most {MAX_TEXT:,}"
        )
    return text
