"""What is there before a task, and what is true after it."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import sqlite3
import subprocess
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minicpm4.agents.mcp.data.named import answers
from minicpm4.config.strict import require
from minicpm4.errors import ConfigError, UnsupportedError
from minicpm4.files import opened_zip, remove_folder, write_file

__all__ = ["set_up", "wrong"]

BASE, GRAPH, REPOSITORY, HOME = "base.db", "memory.jsonl", "repo", "home"
MAX_PART = 16 << 20
SECONDS = 60.0
MAX_STEPS, _BLOCK = 10_000_000, 1000  # of SQLite's machine, for a query; how many between two looks
MAX_VALUE = 1 << 20  # bytes of one in a base
_KEYS = {"files", "folders", "tables", "commits", "left", "graph", "pages", "before"}


def set_up(folder: Path, start: Mapping[str, Any]) -> None:
    """Make a task's folder anew. Raises ConfigError, UnsupportedError, OSError."""
    unknown = start.keys() - _KEYS
    require(not unknown, f"a task's start has {sorted(unknown)}", f"known: {', '.join(sorted(_KEYS))}")
    if folder.exists():
        remove_folder(folder)
    (folder / HOME).mkdir(parents=True)
    for name in start.get("folders", ()):
        (folder / name).mkdir(parents=True)
    _write(folder, start.get("files", {}))
    if "tables" in start:
        with contextlib.closing(sqlite3.connect(folder / BASE)) as base:
            base.executescript(start["tables"])
    if "commits" in start:
        _commit(folder / REPOSITORY, start["commits"])
        _write(folder / REPOSITORY, start.get("left", {}))
    if "graph" in start:
        write_file(folder / GRAPH, "\n".join(json.dumps(one) for one in start["graph"]))


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(folder / name, text)


def _commit(repository: Path, commits: Sequence[Any]) -> None:
    repository.mkdir()
    _must(repository, "init", "-q", "-b", "main")
    _must(repository, "config", "user.name", "Ann")
    _must(repository, "config", "user.email", "ann@example.org")
    for message, files in commits:
        _write(repository, files)
        _must(repository, "add", "-A")
        _must(repository, "commit", "-q", "-m", message)


def _must(repository: Path, *words: str) -> None:
    done = _git(repository, *words)
    if done.returncode:
        raise UnsupportedError(f"git {' '.join(words)} failed: {done.stderr.strip()[-500:]}")


def _git(repository: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What git does with a repository, whatever the settings of whoever runs it. Raises UnsupportedError."""
    command = ["git", "-C", str(repository), *words]
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    home = str(repository.parent / HOME)
    variables = {**own, "HOME": home, "XDG_CONFIG_HOME": home, "GIT_CONFIG_GLOBAL": os.devnull}
    variables["GIT_CONFIG_NOSYSTEM"] = "1"
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=SECONDS, env=variables
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnsupportedError(f"git cannot be used: {error}") from error


def wrong(folder: Path, end: Sequence[Sequence[Any]], answer: str, known: str) -> list[str]:
    """What of a task's end is not as it should be; nothing: it is solved. Raises ConfigError."""
    found = [] if not known or answers(answer, known) else [f"the answer is {answer!r:.100}, not {known!r}"]
    for kind, *given in end:
        if kind not in _CHECKS:
            raise ConfigError(f"a task's end is {kind!r}, which nothing checks", ", ".join(_CHECKS))
        try:
            fine = _CHECKS[kind](folder, *given)
        except (OSError, sqlite3.Error, _NoOffice, UnicodeDecodeError, UnsupportedError) as error:
            fine, given = False, [*given, f"{type(error).__name__}: {error}"]
        if not fine:
            found.append(f"{kind} {json.dumps(given, ensure_ascii=False)}"[:300])
    return found


def _is(folder: Path, name: str, text: str) -> bool:
    """The file has this text; an end of line at its end does not count."""
    return (folder / name).read_text(encoding="utf-8").rstrip("\n") == text.rstrip("\n")


def _has(folder: Path, name: str, *texts: str) -> bool:
    found = (folder / name).read_text(encoding="utf-8")
    return all(text in found for text in texts)


def _lacks(folder: Path, name: str, *texts: str) -> bool:
    found = (folder / name).read_text(encoding="utf-8")
    return not any(text in found for text in texts)


def _gone(folder: Path, name: str) -> bool:
    return not (folder / name).exists()


def _there(folder: Path, name: str) -> bool:
    return (folder / name).is_dir()


def _rows(folder: Path, query: str, rows: Sequence[Sequence[Any]]) -> bool:
    """The query's rows are these. A model may have written the base: a view in a table's place may have no
    end, or a value without measure."""
    blocks = iter(range(MAX_STEPS // _BLOCK))
    until = time.monotonic() + SECONDS
    with contextlib.closing(sqlite3.connect(folder / BASE)) as base:
        base.execute("PRAGMA trusted_schema = OFF")
        base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
        base.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 10)  # each % more takes a text times as long
        base.set_progress_handler(lambda: next(blocks, None) is None or time.monotonic() > until, _BLOCK)
        found = base.execute(query).fetchmany(len(rows) + 1)
        return [list(one) for one in found] == [list(one) for one in rows]


def _repository(folder: Path, words: str, text: str) -> bool:
    """What git says to these words is this text."""
    done = _git(folder / REPOSITORY, *words.split())
    return done.returncode == 0 and done.stdout.strip() == text.strip()


def _remembers(folder: Path, *texts: str) -> bool:
    return _has(folder, GRAPH, *texts)


def _forgot(folder: Path, *texts: str) -> bool:
    return _lacks(folder, GRAPH, *texts)


def _office(folder: Path, name: str, *texts: str) -> bool:
    """A document or presentation says this, in this order."""
    said, at = _words(folder / name), 0
    for text in texts:
        at = said.find(text, at)
        if at < 0:
            return False
    return True


def _unsaid(folder: Path, name: str, *texts: str) -> bool:
    said = _words(folder / name)
    return not any(text in said for text in texts)


def _slides(folder: Path, name: str, count: int) -> bool:
    with _office_file(folder / name) as archive:
        return len([one for one in archive.namelist() if _SLIDE.fullmatch(one)]) == count


_SLIDE = re.compile(r"ppt/slides/slide(\d{1,9})\.xml")


class _NoOffice(Exception):
    """A file that is no document, and no presentation."""


@contextlib.contextmanager
def _office_file(file: Path) -> Iterator[zipfile.ZipFile]:
    """The parts of a document, which a model may have written: damaged, encrypted, or in no known way."""
    with opened_zip(file, _NoOffice) as archive:
        yield archive


def _words(file: Path) -> str:
    """The words of a document, or of a presentation's slides in their order, without what formats them."""
    with _office_file(file) as archive:
        slides = {int(found[1]): name for name in archive.namelist() if (found := _SLIDE.fullmatch(name))}
        names = [slides[number] for number in sorted(slides)] or ["word/document.xml"]
        parts, room = [], MAX_PART
        for name in names:
            with archive.open(name) as part:
                parts.append(part.read(room))
            room -= len(parts[-1])
        text = re.sub(r"</(?:w|a):p>", "\n", b"\n".join(parts).decode("utf-8"))
        # In XML no < is within <…>; to look past one takes for ever where there are many.
        return html.unescape(re.sub(r"<[^<>]*>", "", text))  # ValueError: a character of 4,301 digits


_CHECKS: dict[str, Any] = {
    "file": _is,
    "file has": _has,
    "file lacks": _lacks,
    "gone": _gone,
    "folder": _there,
    "rows": _rows,
    "git": _repository,
    "remembers": _remembers,
    "forgot": _forgot,
    "office has": _office,
    "office lacks": _unsaid,
    "slides": _slides,
}
