"""Packed shards: documents as tokens, in files that are mapped and never parsed.

A set is a folder. Shard k is ``k.tokens`` (uint16, or uint32 for vocabularies above 65,536; little endian),
``k.ends`` (int64: where each document ends, in tokens of the shard) and, where only some tokens are learnt,
``k.learn`` (a byte for each token). ``k.json`` is written after them, so a shard without it does not exist;
``manifest.json`` comes last and lists them with their hashes. A rerun that was cut off goes on after the
last whole shard. Nothing is unpickled; counts are held to the files' sizes before anything is mapped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError, ConfigError

__all__ = ["Document", "ShardSet", "write_shards"]

VERSION = 1
SHARD_TOKENS = 1 << 26
MAX_MANIFEST = 1 << 26
_SIDES = ("tokens", "ends", "learn")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Document:
    """``tokens`` (n,), begin-of-sequence token included; ``learn`` (n,): which of them are learnt (None:
    all)."""

    tokens: NDArray[np.int64]
    learn: NDArray[np.bool_] | None = None


class ShardSet:
    """A written set, mapped. Raises CheckpointError: what is wrong with it, where."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _read_json(folder / "manifest.json")
        self.vocab_size: int = self.manifest.get("vocab_size", 0)
        if (
            self.manifest.get("version") != VERSION
            or not isinstance(self.manifest.get("shards"), list)
            or type(self.vocab_size) is not int
            or self.manifest.get("bytes") not in (2, 4)
        ):
            raise CheckpointError(
                f"{folder / 'manifest.json'} is no manifest of version {VERSION}", "pack the data again"
            )
        self.whole = self.manifest.get("whole") is True
        dtype = np.dtype("<u2") if self.manifest["bytes"] == 2 else np.dtype("<u4")
        self._tokens, self._learn, starts, lengths, shards = [], [], [], [], []
        for number, entry in enumerate(self.manifest["shards"]):
            tokens, ends, learn = self._shard(number, entry, dtype)
            self._tokens.append(tokens)
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
        sides = zip(self._tokens, self._learn, strict=True)
        return sum(len(tokens) if learn is None else int(np.count_nonzero(learn)) for tokens, learn in sides)

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
        learn, tokens = self._learn[shard], self._tokens[shard][part]
        if tokens.size and tokens.max() >= self.vocab_size:
            raise CheckpointError(
                f"{self.folder / f'{shard:05d}.tokens'} holds token {tokens.max()}, "
                f"its vocabulary has {self.vocab_size}",
                "the file is damaged: pack the data again",
            )
        return tokens.astype(np.int32), None if learn is None else learn[part].astype(bool)

    def check_tokenizer(self, fingerprint: str) -> None:
        """Raise ConfigError unless the set was made with the tokenizer of this fingerprint."""
        own = self.manifest.get("tokenizer")
        if own != fingerprint:
            raise ConfigError(
                f"{self.folder} was packed with tokenizer {own}, the model's is {fingerprint}",
                "pack the data again",
            )

    def verify(self) -> None:
        """Read every file and compare its hash. Raises CheckpointError."""
        for number, entry in enumerate(self.manifest["shards"]):
            sides = [side for side in _SIDES if side != "learn" or self._learn[number] is not None]
            for side in sides:
                file = self.folder / f"{number:05d}.{side}"
                if _hash(file) != entry["sha256"].get(side):
                    raise CheckpointError(
                        f"{file} is not what was written: its sha256 differs", "pack the data again"
                    )

    def _shard(self, number: int, entry: Any, dtype: np.dtype[Any]) -> tuple[Any, Any, Any]:
        try:
            count, documents, masked = (
                int(entry["tokens"]),
                int(entry["documents"]),
                "learn" in dict(entry["sha256"]),
            )
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"shard {number} of {self.folder} is not described", "pack the data again"
            ) from error
        found: list[Any] = []
        for side, kind, items in (
            ("tokens", dtype, count),
            ("ends", np.dtype("<i8"), documents),
            ("learn", np.dtype("u1"), count),
        ):
            file = self.folder / f"{number:05d}.{side}"
            if side == "learn" and not masked:
                found.append(None)
                continue
            size = file.stat().st_size if file.is_file() else -1
            if size != items * kind.itemsize:
                raise CheckpointError(
                    f"{file} has {size} bytes, its manifest says {items * kind.itemsize}",
                    "pack the data again",
                )
            found.append(np.memmap(file, kind, "r") if items else np.zeros(0, kind))
        ends = np.asarray(found[1])
        if documents and (np.any(np.diff(ends) <= 0) or ends[0] <= 0 or ends[-1] != count):
            raise CheckpointError(
                f"{self.folder / f'{number:05d}.ends'} does not rise to {count}", "pack the data again"
            )
        return found[0], ends, found[2]


def write_shards(
    folder: Path,
    documents: Iterable[Document],
    *,
    vocab_size: int,
    about: Mapping[str, Any],
    shard_tokens: int = SHARD_TOKENS,
) -> ShardSet:
    """Write ``documents``, the same at every call, to ``folder``; one that is written already is read.

    ``about``: what the set is made of ("tokenizer": its fingerprint; "filter": ``sources.filter_hash``;
    "whole": whether half a document is of no use). It goes into the manifest, and a folder that says
    otherwise is refused. Raises CheckpointError, ConfigError for a token outside the vocabulary.
    """
    try:
        return _write_set(folder, documents, vocab_size, about, shard_tokens)
    except OSError as error:
        raise CheckpointError(
            f"cannot write shards to {folder}: {error}", "free space there and run it again: it goes on"
        ) from error


def _write_set(
    folder: Path, documents: Iterable[Document], vocab_size: int, about: Mapping[str, Any], shard_tokens: int
) -> ShardSet:
    folder.mkdir(parents=True, exist_ok=True)
    size = 2 if vocab_size <= 1 << 16 else 4
    # As a manifest reads it: a tuple comes back as a list.
    head = json.loads(json.dumps({"version": VERSION, "bytes": size, "vocab_size": vocab_size, **about}))
    if (folder / "manifest.json").is_file():
        found = ShardSet(folder)
        if {key: value for key, value in found.manifest.items() if key != "shards"} != head:
            raise CheckpointError(f"{folder} holds a set made otherwise", "remove it, or give another folder")
        return found
    entries = list(_whole(folder, head))
    for leftover in folder.glob(".[0-9]*"):  # of a call that was cut off within a shard
        leftover.unlink()
    rest = islice(iter(documents), sum(entry["documents"] for entry in entries), None)
    for group in _groups(rest, shard_tokens):
        entries.append(_write(folder, len(entries), group, head))
    _write_json(folder / "manifest.json", {**head, "shards": entries})
    for number in range(len(entries)):
        (folder / f"{number:05d}.json").unlink(missing_ok=True)
    return ShardSet(folder)


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
    }
    if any(document.learn is not None for document in group):
        masks = [np.ones(len(d.tokens), bool) if d.learn is None else d.learn for d in group]
        arrays["learn"] = np.concatenate(masks).astype(np.uint8)
    hashes = {}
    for side, array in arrays.items():
        file = folder / f"{number:05d}.{side}"
        part = file.with_name(f".{file.name}.{os.getpid()}")
        with part.open("wb") as stream:
            array.tofile(stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
        hashes[side] = hashlib.sha256(array.tobytes()).hexdigest()
    entry = {"tokens": len(tokens), "documents": len(group), "sha256": hashes}
    _write_json(folder / f"{number:05d}.json", {**entry, "head": dict(head)})
    return entry


def _whole(folder: Path, head: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What an earlier call has finished."""
    number = 0
    while (folder / f"{number:05d}.json").is_file():
        entry = _read_json(folder / f"{number:05d}.json")
        if entry.pop("head", None) != dict(head):
            raise CheckpointError(f"{folder} holds the beginning of a set made otherwise", "remove it")
        yield entry
        number += 1


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_json(file: Path, value: Any) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(file)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_MANIFEST:
            raise CheckpointError(f"{file} is larger than {MAX_MANIFEST >> 20} MiB")
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {file}: {error}", "pack the data again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds a {type(value).__name__}, not a table", "pack the data again")
    return value
