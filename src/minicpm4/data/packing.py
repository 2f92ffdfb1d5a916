"""From texts and conversations to documents of tokens, encoded on all cores, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from minicpm4.data.chat import ChatEncoder, LeftOut
from minicpm4.data.shards import Document
from minicpm4.text import Tokenizer

__all__ = ["Counting", "chat_documents", "size_in_utf8", "text_documents"]

BATCH_CHARS = 1 << 21  # texts encoded at a time: enough for all cores, little memory
Progress = Callable[[int, int, int], None]


class Counting:
    """What has gone by: ``documents``, ``tokens``, ``nbytes`` of their texts in UTF-8 (of conversations 0),
    and what was ``left_out`` for which reason. ``progress`` is told the first three after each batch."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.documents = self.tokens = self.nbytes = 0
        self.left_out: Counter[str] = Counter()
        self._progress = progress

    def add(self, documents: int, tokens: int, nbytes: int) -> None:
        self.documents += documents
        self.tokens += tokens
        self.nbytes += nbytes
        if self._progress is not None:
            self._progress(self.documents, self.tokens, self.nbytes)


def text_documents(
    texts: Iterable[str], tokenizer: Tokenizer, counting: Counting | None = None
) -> Iterator[Document]:
    """Each text between the begin token, where the tokenizer has one, and its first end token. A control
    token that a text spells stays text."""
    before, end = tokenizer.prefix_ids, list(tokenizer.eos_token_ids[:1])
    for batch in _batches(texts):
        encoded = tokenizer.encode_many(batch)
        made = [Document(tokens=np.asarray([*before, *ids, *end], np.int64)) for ids in encoded]
        if counting is not None:
            counting.add(len(made), sum(len(d.tokens) for d in made), sum(map(size_in_utf8, batch)))
        yield from made


def chat_documents(
    conversations: Iterable[tuple[str, Any]], encoder: ChatEncoder, counting: Counting | None = None
) -> Iterator[Document]:
    """Each (where, messages) with its loss mask; those left out are counted by reason. Raises ConfigError
    for what is no conversation."""
    for where, messages in conversations:
        try:
            made = encoder.encode(messages, where=where)
        except LeftOut as reason:
            if counting is not None:
                counting.left_out[str(reason)] += 1
            continue
        if counting is not None:
            counting.add(1, len(made.tokens), 0)
        yield made


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def size_in_utf8(text: str) -> int:
    """Bytes of ``text``."""
    return len(text) if text.isascii() else len(text.encode())
