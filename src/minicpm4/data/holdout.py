"""Which documents are held out: a hash of each one's own text says, and nothing else does.

A document's *mark* is 64 bits of the hash of its text, of a conversation of its messages, of one that was
made (needles, copies) of its tokens. Of a share those are held out whose marks are below share * 2^64. So
neither other documents nor their order or number move any, nor does the tokenizer, nor whether a recipe packs
or ``minicpm4 data pack``; equal texts are on one side, and a larger share holds out the same ones and more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "chances",
    "digest",
    "held_out",
    "mark_of",
    "mark_of_messages",
    "mark_of_tokens",
    "split",
    "without_weight",
]

T = TypeVar("T")


def mark_of(text: str) -> int:
    """The mark of a text, from 0 to 2^64 - 1."""
    return int.from_bytes(digest(text)[:8], "big")


def mark_of_messages(messages: Any) -> int:
    """The mark of a conversation (JSON), in any order of its messages' keys, whatever is learnt, and with or
    without fields that are null: parquet has those of all messages."""
    if isinstance(messages, list):
        messages = [_without_nulls(without_weight(message)) for message in messages]
    return mark_of(json.dumps(messages, sort_keys=True, ensure_ascii=False))


def without_weight(message: Any) -> Any:
    """A message without what says whether it is learnt: no template reads that."""
    if not isinstance(message, Mapping) or "weight" not in message:
        return message
    return {name: value for name, value in message.items() if name != "weight"}


def _without_nulls(message: Any) -> Any:
    if not isinstance(message, Mapping):
        return message
    return {name: value for name, value in message.items() if value is not None or name == "content"}


def mark_of_tokens(tokens: NDArray[np.int64]) -> int:
    """The mark of a document that has no text of its own."""
    return int.from_bytes(hashlib.blake2b(tokens.astype("<i8").tobytes(), digest_size=8).digest(), "big")


def chances(marks: ArrayLike) -> NDArray[np.float64]:
    """Marks as numbers from 0 to 1: a document is held out of every share above its own."""
    return np.asarray(marks, np.uint64) / 2.0**64


def held_out(marks: ArrayLike, share: float) -> NDArray[np.bool_]:
    """Which of the documents with these marks are held out: about ``share`` (0 to 1) of all."""
    found: NDArray[np.bool_] = chances(marks) < share
    return found


def split(items: Iterable[T], share: float, side: bool, mark: Callable[[T], int]) -> Iterator[T]:
    """The items that are held out (``side``), or the others, by their marks."""
    for item in items:
        if bool(held_out(mark(item), share)) == side:
            yield item


def digest(text: str) -> bytes:
    """16 bytes of the text's hash."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
