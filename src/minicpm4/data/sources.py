"""Texts from files: plain text, or JSON lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from minicpm4.errors import ConfigError

__all__ = ["files_of", "hash_of", "texts"]

MAX_TEXT = 1 << 26  # characters of a document
SUFFIXES = {"text": (".txt", ".md", ".rst"), "jsonl": (".jsonl",)}


def files_of(kind: str, paths: Sequence[str]) -> list[Path]:
    """Files that ``paths`` name, those of folders by their suffix, in order. Raises ConfigError where there
    is none."""
    found: list[Path] = []
    for text in paths:
        path = Path(text).expanduser()
        if path.is_dir():
            inside = [p for p in path.rglob("*") if p.suffix in SUFFIXES[kind] and p.is_file()]
            if not inside:
                raise ConfigError(
                    f"{path} has no files of kind {kind!r}", "it looks for " + ", ".join(SUFFIXES[kind])
                )
            found += sorted(inside)
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"{path} is neither a file nor a folder", "check paths in the recipe")
    return found


def texts(kind: str, files: Sequence[Path], column: str = "text") -> Iterator[str]:
    """Documents that are not empty: a file's whole text, or ``column`` of each of its lines. Raises
    ConfigError."""
    for file in files:
        try:
            if kind == "text":
                found = [file.read_text(encoding="utf-8", errors="replace")]
                yield from (_bounded(text, str(file)) for text in found if text.strip())
                continue
            with file.open(encoding="utf-8", errors="replace") as lines:
                for number, line in enumerate(lines, 1):
                    text = _column(line, column, f"{file}, line {number}")
                    if text.strip():
                        yield _bounded(text, f"{file}, line {number}")
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error}") from error


def hash_of(files: Sequence[Path]) -> str:
    """Of the files' contents, in order."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def _column(line: str, column: str, where: str) -> str:
    try:
        value = json.loads(line)[column] if line.strip() else ""
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{where} has no {column!r}: {line[:60]!r}", "set the corpus's column") from error
    if not isinstance(value, str):
        raise ConfigError(
            f"{where}: {column!r} is a {type(value).__name__}, not a text", "set the corpus's column"
        )
    return value


def _bounded(text: str, where: str) -> str:
    if len(text) > MAX_TEXT:
        raise ConfigError(
            f"{where} has {len(text):,} characters", f"cut it: a document has at most {MAX_TEXT:,}"
        )
    return text
