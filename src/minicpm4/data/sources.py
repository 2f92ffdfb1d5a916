"""Documents from files: text, JSON lines, parquet, HTML, and packages that carry documentation.

| kind | one document is | looked for in folders |
| --- | --- | --- |
| text | a file | .txt .md .rst |
| html | the text of a page | .html .htm .xhtml |
| jsonl | a line's ``column`` | .jsonl .jsonl.gz |
| chat | a line's or row's ``column``: messages | .jsonl .jsonl.gz .parquet |
| parquet | a row's ``column`` | .parquet |
| package | a page or text file of ``apt:NAME`` or ``pip:NAME==VERSION`` | html and text |

What a filter of quality or a generator of new text will be is a function from documents to documents,
between ``texts`` and packing: nothing else needs to know of it.

Text files and JSON lines are UTF-8, or UTF-16 where a byte-order mark says so; pages are read by their
declaration (``files/encodings.py``). What does not decode is left out whole, so is what is null, and so is a
line or row that is not what it should be: whoever reads is told by ``skip(reason, where)``. Who does not
listen gets an error for the latter, and so does everybody where no row of a file is right.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from minicpm4.config.strict import suggest
from minicpm4.data.conversation import BESIDE, Conversation, LeftOut, Unread, conversation_of
from minicpm4.data.holdout import digest
from minicpm4.data.html import VERSION as HTML_VERSION
from minicpm4.data.html import html_text
from minicpm4.data.packages import fetch_package
from minicpm4.data.rows import UNDECODED, Skip, json_lines, parquet_rows
from minicpm4.errors import ConfigError
from minicpm4.files import UndecodableError, decode_page, decode_text, line_ends
from minicpm4.places import from_user

__all__ = [
    "KINDS",
    "UNDECODED",
    "WRONG",
    "Conversation",
    "Skip",
    "conversations",
    "distinct",
    "files_of",
    "filter_hash",
    "hash_of",
    "right_ones",
    "texts",
    "unreadable",
    "untold",
]

MAX_TEXT = 1 << 26  # characters of a document
TEXT, PAGES = (".txt", ".md", ".rst"), (".html", ".htm", ".xhtml")
SUFFIXES = {
    "text": TEXT,
    "html": PAGES,
    "jsonl": (".jsonl", ".jsonl.gz"),
    "chat": (".jsonl", ".jsonl.gz", ".parquet"),
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
NULL = "null where text should be"
WRONG = "lines or rows that are not what they should be"
T = TypeVar("T")


def files_of(kind: str, paths: Sequence[str]) -> list[Path]:
    """Files that ``paths`` name, those of folders by their suffix, in order; packages are fetched.

    Raises ConfigError where there is none, UnsupportedError where a package cannot be had.
    """
    if kind not in SUFFIXES:
        raise ConfigError(f"corpus kind {kind!r} is unknown", suggest(kind, list(KINDS)))
    found: list[Path] = []
    for text in paths:
        path = fetch_package(text) if kind == "package" else from_user(text)
        if _is_dir(path):
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


def _is_dir(path: Path) -> bool:
    """Whether it is a folder whose names can be read. Raises ConfigError where it may not be looked at."""
    try:
        if not path.is_dir():
            path.is_file()
            return False
        next(path.iterdir(), None)
    except OSError as error:
        raise unreadable(path, error) from error
    return True


def untold(reason: str, where: str) -> None:
    """Nobody asks what was left out."""


def texts(kind: str, files: Iterable[Path], column: str = "text", skip: Skip = untold) -> Iterator[str]:
    """Documents that are not empty, in order. Raises ConfigError: which file, which line, what is wrong."""
    for file in files:
        try:
            for where, text in _texts_in(kind, file, column, skip):
                if text.strip():
                    yield _bounded(text, where)
        except (OSError, EOFError, zlib.error) as error:
            raise unreadable(file, error) from error


def conversations(
    files: Iterable[Path], column: str = "messages", skip: Skip = untold, note: Skip = untold
) -> Iterator[Conversation]:
    """Each line of JSON lines, or row of parquet: its ``column``, possibly as JSON text, with the columns
    beside it that count (``conversation.py``). Of the others ``note`` is told once, after all.

    Parquet cannot tell what is null in a table from what is not in it: there, but for the content of
    messages, nulls count as not in it. Raises ConfigError.
    """
    unread = Unread(column)
    for file in files:
        try:
            parquet = file.name.endswith(".parquet")
            see = partial(unread.see, where=str(file))
            rows = parquet_rows(file, column, skip, BESIDE, see) if parquet else json_lines(file, skip)

            def read(table: Any, where: str) -> Conversation | None:
                messages = _of_column(table, column, where)
                unread.see(table, where)
                if messages is None:
                    skip(NULL, where)
                    return None
                try:
                    return conversation_of(table, column, where)
                except LeftOut as reason:
                    skip(str(reason), where)
                    return None

            for _, found in right_ones(rows, read, skip):
                if found is not None:
                    yield found
        except (OSError, EOFError, zlib.error) as error:
            raise unreadable(file, error) from error
    if said := str(unread):
        note(said, unread.where)


def unreadable(file: Path, error: Exception) -> ConfigError:
    """What to raise where a file of a corpus cannot be read."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else error
    return ConfigError(f"cannot read {file}: {why}", "check the file and its permissions")


def hash_of(files: Sequence[Path]) -> str:
    """Of the files' contents, in order. Raises ConfigError."""
    total = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise unreadable(file, error) from error
    return total.hexdigest()[:16]


def filter_hash(kind: str, *, distinct: bool = False, share: float = 0.0, held_out: bool = False) -> str:
    """Of all that decides which texts of files of this kind are taken, and how pages are read: for manifests.
    ``distinct``: without repetitions; ``share``, ``held_out``: as for ``holdout.split``."""
    settings: dict[str, Any] = {"distinct": distinct, "split": [share, held_out]}
    if kind in ("html", "package"):
        settings |= {"html": HTML_VERSION, "least_page": LEAST_PAGE, "no_prose": _NO_PROSE}
    if kind == "questions":
        settings |= {"html": HTML_VERSION, "headings": "letters are words"}
    if kind == "chat":
        settings["beside"] = (*BESIDE, "weight", "messages as text", "marks without nulls")
    if kind == "copies":
        settings["passages"] = "without begin and end"
    if kind == "package":
        settings["no_document"] = _NO_DOCUMENT.pattern
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def distinct(documents: Iterable[str]) -> Iterator[str]:
    """Without those that are, white space aside, the same as an earlier one."""
    seen: set[bytes] = set()
    for text in documents:
        mark = digest(" ".join(text.split()))
        if mark not in seen:
            seen.add(mark)
            yield text


def _texts_in(kind: str, file: Path, column: str, skip: Skip) -> Iterator[tuple[str, str]]:
    if kind in ("jsonl", "parquet"):
        rows = json_lines(file, skip) if kind == "jsonl" else parquet_rows(file, column, skip)

        def read(table: Any, where: str) -> tuple[str, str] | None:
            value = _of_column(table, column, where)
            if value is None:
                skip(NULL, where)
            elif isinstance(value, str) and (found := _SURROGATE.search(value)):
                skip(UNDECODED, f"{where} has half a character at {found.start()}")
            else:
                return where, _text_of(value, column, where)
            return None

        yield from (found for _, found in right_ones(rows, read, skip) if found is not None)
        return
    page = file.name.endswith(PAGES) and kind != "text"
    text = _whole_file(file, page, skip)
    if text is None:
        return
    if not page:
        yield str(file), text
        return
    text = html_text(text)
    if len(text) >= LEAST_PAGE and not file.stem.startswith(_NO_PROSE):
        yield str(file), text


def right_ones(
    rows: Iterable[tuple[str, Any]], read: Callable[[Any, str], T], skip: Skip
) -> Iterator[tuple[Any, T]]:
    """Rows, (place, row), each with what ``read`` makes of it. Those that it refuses are skipped; the first
    is raised where no row is right: then something else is wrong, such as the name of the column."""
    wrong: ConfigError | None = None
    right = False
    for where, table in rows:
        try:
            if isinstance(table, ConfigError):
                raise table
            found = read(table, where)
        except ConfigError as error:
            if skip is untold:
                raise
            if wrong is not None or right:
                skip(WRONG, str(error.condition))
            else:
                wrong = error  # whether it is one of many shows later
            continue
        if wrong is not None and not right:
            skip(WRONG, str(wrong.condition))
        right = True
        yield table, found
    if wrong is not None and not right:
        raise wrong


def _whole_file(file: Path, page: bool, skip: Skip) -> str | None:
    size = file.stat().st_size
    if size > 4 * MAX_TEXT:
        raise ConfigError(f"{file} has {size:,} bytes", f"cut it: a document has at most {MAX_TEXT:,}")
    try:
        return line_ends((decode_page if page else decode_text)(file.read_bytes()))
    except UndecodableError as error:
        skip(UNDECODED, f"{file} is {error}")
        return None


def _of_column(table: Any, column: str, where: str) -> Any:
    if not isinstance(table, dict) or column not in table:
        has = ", ".join(map(repr, islice(table, 8))) if isinstance(table, dict) else ""
        remedy = "name the column" if has else f"each line is a table with {column!r}"
        raise ConfigError(f"{where} has no {column!r}, but {has[:200] or 'no columns'}", remedy)
    return table[column]


def _text_of(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(
            f"{where}: {column!r} is a {type(value).__name__}, not a text", "name another column"
        )
    return value


def _bounded(text: str, where: str) -> str:
    if len(text) > MAX_TEXT:
        raise ConfigError(
            f"{where} has {len(text):,} characters", f"cut it: a document has at most {MAX_TEXT:,}"
        )
    return text
