"""Packed shards: documents as tokens, in files that are mapped and never parsed.

A set is a folder. Shard k is ``k.tokens`` (uint16, or uint32 for vocabularies above 65,536; little endian),
``k.ends`` (int64: where each document ends, in tokens of the shard), ``k.marks`` (uint64 for each document:
what decides whether it is held out, ``data/holdout.py``; sets of earlier versions have none) and, where only
some tokens are learnt, ``k.learn`` (a byte for each token). ``k.json`` is written after them, so a shard
without it does not exist; ``manifest.json`` comes last and lists them with their hashes. A rerun that was cut
off goes on after the last whole shard. Nothing is unpickled; counts are held to the files' sizes before
anything is mapped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minicpm4.data import holdout
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.files import file_sha256, json_text, lock, read_json, write_json, writing

__all__ = ["Chosen", "Document", "Documents", "ShardSet", "is_set", "owns", "write_shards"]

logger = logging.getLogger("minicpm4")

VERSION = 1
SHARD_TOKENS = 1 << 26
MAX_MANIFEST = 1 << 26
LOCK = ".lock"
_AGAIN = "pack the data again"
MAX_VOCABULARY = 1 << 27  # as config.json's: readers make tables of that length
_SIDES = ("tokens", "ends", "marks", "learn")
MANIFEST = "manifest.json"
NOTES = "notes.json"  # beside the manifest: what was told as the set was packed
_OWN = re.compile(
    rf"\.?(lock|manifest\.json|notes\.json|\d{{5}}\.({'|'.join((*_SIDES, 'json'))}))(\.[0-9a-f]{{8}}\.part)?"
)


def is_set(folder: Path) -> bool:
    """Whether a whole packed set is there."""
    return (folder / MANIFEST).is_file()


def owns(name: str) -> bool:
    """Whether a file or folder of this name in that of a packed set, whole or begun, is its own."""
    return _OWN.fullmatch(name) is not None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Document:
    """``tokens`` (n,), begin-of-sequence token included; ``learn`` (n,): which of them are learnt (None:
    all); ``mark``: of its text (``data/holdout.py``; None: of its tokens)."""

    tokens: NDArray[np.int64]
    learn: NDArray[np.bool_] | None = None
    mark: int | None = None


class Documents(Protocol):
    """Documents that can be read by number: a ShardSet, or some of one's."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def lengths(self) -> NDArray[np.int64]: ...
    def __len__(self) -> int: ...
    def read(
        self, document: int, start: int, stop: int
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_] | None]: ...


class ShardSet:
    """A written set, mapped; each file is held to its hash when it is first read. Raises CheckpointError:
    what is wrong with it, where."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._right: set[tuple[int, str]] = set()  # files whose hash is that of the manifest
        self.manifest = read_json(folder / MANIFEST, MAX_MANIFEST, CheckpointError, _AGAIN)
        self.vocab_size: int = self.manifest.get("vocab_size", 0)
        if (
            self.manifest.get("version") != VERSION
            or not isinstance(self.manifest.get("shards"), list)
            or type(self.vocab_size) is not int
            or not 0 <= self.vocab_size <= MAX_VOCABULARY
            or self.manifest.get("bytes") not in (2, 4)
        ):
            raise CheckpointError(f"{folder / MANIFEST} is no manifest of version {VERSION}", _AGAIN)
        self.whole = self.manifest.get("whole") is True
        dtype = np.dtype("<u2") if self.manifest["bytes"] == 2 else np.dtype("<u4")
        self._tokens, self._learn, self._marks, starts, lengths, shards = [], [], [], [], [], []
        for number, entry in enumerate(self.manifest["shards"]):
            tokens, ends, marks, learn = self._shard(number, entry, dtype)
            self._tokens.append(tokens)
            self._marks.append(marks)
            self._learn.append(learn)
            begins = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
            starts.append(begins)
            lengths.append(ends - begins)
            shards.append(np.full(len(ends), number, np.int32))
        self.starts: NDArray[np.int64] = np.concatenate([np.zeros(0, np.int64), *starts])
        self.lengths: NDArray[np.int64] = np.concatenate([np.zeros(0, np.int64), *lengths])
        self._shard_of: NDArray[np.int32] = np.concatenate([np.zeros(0, np.int32), *shards])

    def __len__(self) -> int:
        """Documents."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum())

    @property
    def num_learnt(self) -> int:
        """Those of them that are learnt; counted in the files at each call."""
        count = 0
        for number, (tokens, learn) in enumerate(zip(self._tokens, self._learn, strict=True)):
            if learn is not None:
                self._check(number, "learn")
            count += len(tokens) if learn is None else int(np.count_nonzero(learn))
        return count

    @property
    def notes(self) -> list[str]:
        """What was told as it was packed: what was left out, what was not read. No part of its hash.

        Raises CheckpointError."""
        told = read_json(self.folder / NOTES, MAX_MANIFEST, CheckpointError, optional=True).get("notes", [])
        if not isinstance(told, list) or not all(isinstance(one, str) for one in told):
            raise CheckpointError(f"{self.folder / NOTES} holds no notes", "remove it")
        return told

    @property
    def hash(self) -> str:
        """Of the manifest: the same for the same documents, tokenizer and settings."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()[:16]

    def read(
        self, document: int, start: int, stop: int
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_] | None]:
        """Tokens ``start`` to ``stop`` - 1 of a document, and which are learnt (None: all). Raises
        CheckpointError where the files hold what is no token."""
        shard, base = int(self._shard_of[document]), int(self.starts[document])
        part = slice(base + start, base + min(stop, int(self.lengths[document])))
        self._check(shard, "tokens")
        learn, tokens = self._learn[shard], self._tokens[shard][part]
        if learn is not None:
            self._check(shard, "learn")
        if tokens.size and tokens.max() >= self.vocab_size:
            raise CheckpointError(
                f"{self.folder / f'{shard:05d}.tokens'} holds token {tokens.max()}, "
                f"its vocabulary has {self.vocab_size}",
                "the file is damaged: pack the data again",
            )
        return tokens.astype(np.int32), None if learn is None else learn[part].astype(bool)

    def chosen(self, share: float, *, held_out: bool) -> NDArray[np.int64]:
        """Numbers of the documents that ``share`` holds out, or of the others. Raises ConfigError for a set
        without marks."""
        if not share:
            return np.arange(0 if held_out else len(self))
        return np.flatnonzero(holdout.held_out(self.marks(), share) == held_out)

    def marks(self) -> NDArray[np.uint64]:
        """Of every document what decides whether it is held out. Raises ConfigError for a set without."""
        if any(marks is None for marks in self._marks):
            raise ConfigError(
                f"{self.folder} is of an earlier version: it has no marks of its texts, which hold some out",
                "pack the data again, or hold out nothing of it",
            )
        return np.concatenate([np.zeros(0, np.uint64), *self._marks])

    def check_tokenizer(self, fingerprint: str) -> None:
        """Raise ConfigError unless the set was made with the tokenizer of this fingerprint."""
        own = self.manifest.get("tokenizer")
        if own != fingerprint:
            raise ConfigError(
                f"{self.folder} was packed with tokenizer {own}, the model's is {fingerprint}",
                _AGAIN,
            )

    def check_made(self, about: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless the set's manifest says ``about`` of what it is made of."""
        # As a manifest reads it: a tuple comes back as a list.
        wanted = json.loads(json_text(dict(about)))
        if any(self.manifest.get(name) != value for name, value in wanted.items()):
            raise CheckpointError(
                f"{self.folder} holds a set made otherwise", "remove it, or give another folder"
            )

    def verify(self) -> None:
        """Read every file and compare its hash, again where that was done. Raises CheckpointError."""
        self._right.clear()
        for number, entry in enumerate(self.manifest["shards"]):
            for side in _sides(entry):
                self._check(number, side)

    def _check(self, number: int, side: str) -> None:
        """Compare the hash of a file, once. Raises CheckpointError."""
        if (number, side) in self._right:
            return
        file = self.folder / f"{number:05d}.{side}"
        try:
            found = file_sha256(file)
        except OSError as error:
            raise CheckpointError(f"cannot read {file}: {error.strerror or error}", _AGAIN) from error
        if found != dict(self.manifest["shards"][number]["sha256"]).get(side):
            raise CheckpointError(f"{file} is not what was written: its sha256 differs", _AGAIN)
        self._right.add((number, side))

    def _shard(self, number: int, entry: Any, dtype: np.dtype[Any]) -> tuple[Any, Any, Any, Any]:
        try:
            count, documents, sides = int(entry["tokens"]), int(entry["documents"]), _sides(entry)
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise CheckpointError(f"shard {number} of {self.folder} is not described", _AGAIN) from error
        found: list[Any] = []
        for side, kind, items in (
            ("tokens", dtype, count),
            ("ends", np.dtype("<i8"), documents),
            ("marks", np.dtype("<u8"), documents),
            ("learn", np.dtype("u1"), count),
        ):
            file = self.folder / f"{number:05d}.{side}"
            if side not in sides:
                found.append(None)
                continue
            found.append(_mapped(file, kind, items))
            if side in ("ends", "marks"):  # which are read now
                self._check(number, side)
        ends = np.asarray(found[1])
        # Neighbours are compared, not subtracted: of hostile ends a difference may wrap around int64.
        if documents and (np.any(ends[1:] <= ends[:-1]) or ends[0] <= 0 or ends[-1] != count):
            raise CheckpointError(f"{self.folder / f'{number:05d}.ends'} does not rise to {count}", _AGAIN)
        return found[0], ends, found[2], found[3]


class Chosen:
    """The documents ``numbers`` of a set, counted from 0."""

    def __init__(self, data: ShardSet, numbers: NDArray[np.int64]) -> None:
        self.vocab_size = data.vocab_size
        self.lengths: NDArray[np.int64] = data.lengths[numbers]
        self._data, self._numbers = data, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def read(
        self, document: int, start: int, stop: int
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_] | None]:
        """As ``ShardSet.read``."""
        return self._data.read(int(self._numbers[document]), start, stop)


def _sides(entry: Any) -> list[str]:
    """Which files a shard has; "marks" and "learn" may be missing."""
    return [side for side in _SIDES if side in ("tokens", "ends") or side in dict(entry["sha256"])]


def write_shards(
    folder: Path,
    documents: Iterable[Document],
    *,
    vocab_size: int,
    about: Mapping[str, Any],
    shard_tokens: int = SHARD_TOKENS,
    told: Callable[[], list[str]] = list,
) -> ShardSet:
    """Write ``documents``, the same at every call, to ``folder``; one that is written already is read.

    ``about``: what the set is made of ("tokenizer": its fingerprint; "filter": ``sources.filter_hash``;
    "whole": whether half a document is of no use). It goes into the manifest, and a folder that says
    otherwise is refused. ``told``: once all documents have gone by, what is to be kept as ``notes``. Raises
    CheckpointError, ConfigError for a token outside the vocabulary.
    """
    try:
        return _write_set(folder, documents, vocab_size, about, shard_tokens, told)
    except OSError as error:
        raise CheckpointError(
            f"cannot write shards to {folder}: {error}", "free space there and run it again: it goes on"
        ) from error


def _write_set(
    folder: Path,
    documents: Iterable[Document],
    vocab_size: int,
    about: Mapping[str, Any],
    shard_tokens: int,
    told: Callable[[], list[str]],
) -> ShardSet:
    folder.mkdir(parents=True, exist_ok=True)
    size = 2 if vocab_size <= 1 << 16 else 4
    head = {"version": VERSION, "bytes": size, "vocab_size": vocab_size, **about}
    head = json.loads(json_text(head))  # as a manifest reads it: a tuple comes back as a list
    if not is_set(folder):
        with lock(folder / LOCK, lambda: logger.warning("waiting for another process that packs %s", folder)):
            if not is_set(folder):  # by another process meanwhile
                _write_missing(folder, documents, head, shard_tokens, told)
    found = ShardSet(folder)
    rest = found.manifest.keys() - head.keys() - {"shards"}
    found.check_made({**head, **dict.fromkeys(rest)})  # nor does it say more
    return found


def _write_missing(
    folder: Path,
    documents: Iterable[Document],
    head: Mapping[str, Any],
    shard_tokens: int,
    told: Callable[[], list[str]],
) -> None:
    """Go on after the last whole shard, up to the manifest."""
    entries = list(_whole(folder, head))
    rest = islice(iter(documents), sum(entry["documents"] for entry in entries), None)
    for group in _groups(rest, shard_tokens):
        entries.append(_write(folder, len(entries), group, head))
    if notes := told():
        write_json(folder / NOTES, {"notes": notes}, durable=True)
    write_json(folder / MANIFEST, {**head, "shards": entries}, durable=True)
    for number in range(len(entries)):
        (folder / f"{number:05d}.json").unlink(missing_ok=True)


def _groups(documents: Iterable[Document], shard_tokens: int) -> Iterator[list[Document]]:
    group: list[Document] = []
    size = 0
    for document in documents:
        if not len(document.tokens):
            raise ConfigError("a document has no tokens", "leave empty texts out")
        group.append(document)
        size += len(document.tokens)
        if size >= shard_tokens:
            yield group
            group, size = [], 0
    if group:
        yield group


def _write(folder: Path, number: int, group: list[Document], head: Mapping[str, Any]) -> dict[str, Any]:
    tokens = np.concatenate([document.tokens for document in group])
    if tokens.min() < 0 or tokens.max() >= head["vocab_size"]:
        raise ConfigError(
            f"a token is outside the vocabulary of {head['vocab_size']}", "pack with the model's tokenizer"
        )
    arrays: dict[str, Any] = {
        "tokens": tokens.astype("<u2" if head["bytes"] == 2 else "<u4"),
        "ends": np.cumsum([len(document.tokens) for document in group]).astype("<i8"),
        "marks": np.array([_mark(document) for document in group], "<u8"),
    }
    if any(document.learn is not None for document in group):
        masks = [np.ones(len(d.tokens), bool) if d.learn is None else d.learn for d in group]
        arrays["learn"] = np.concatenate(masks).astype(np.uint8)
    hashes = {}
    for side, array in arrays.items():
        with writing(folder / f"{number:05d}.{side}", durable=True) as stream:
            array.tofile(stream)
        hashes[side] = hashlib.sha256(array.tobytes()).hexdigest()
    entry = {"tokens": len(tokens), "documents": len(group), "sha256": hashes}
    write_json(folder / f"{number:05d}.json", {**entry, "head": dict(head)}, durable=True)
    return entry


def _mark(document: Document) -> int:
    return holdout.mark_of_tokens(document.tokens) if document.mark is None else document.mark


def _whole(folder: Path, head: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What an earlier call has finished."""
    number = 0
    while (folder / f"{number:05d}.json").is_file():
        entry = read_json(folder / f"{number:05d}.json", MAX_MANIFEST, CheckpointError, _AGAIN)
        sums = entry.get("sha256")  # which has marks of all documents of a set or of none
        fine = isinstance(sums, dict) and "marks" in sums and entry.pop("head", None) == dict(head)
        if not fine or not all(type(entry.get(n)) is int and entry[n] > 0 for n in ("tokens", "documents")):
            raise CheckpointError(f"{folder} holds the beginning of a set made otherwise", "remove it")
        yield entry
        number += 1


def _mapped(file: Path, kind: np.dtype[Any], items: int) -> NDArray[Any]:
    """The numbers in a file that must have so many of them. Raises CheckpointError."""
    try:
        size = file.stat().st_size if file.is_file() else -1
        if size == items * kind.itemsize:
            return np.memmap(file, kind, "r") if items else np.zeros(0, kind)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}", "look at its permissions") from error
    raise CheckpointError(f"{file} has {size} bytes, its manifest says {items * kind.itemsize}", _AGAIN)
