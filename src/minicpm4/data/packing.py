"""From texts and conversations to documents of tokens, encoded on all cores, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from minicpm4.data.chat import ChatEncoder, LeftOut
from minicpm4.data.conversation import Conversation
from minicpm4.data.holdout import mark_of, mark_of_messages
from minicpm4.data.shards import Document
from minicpm4.data.sources import right_ones, untold
from minicpm4.errors import ConfigError
from minicpm4.text import Tokenizer

__all__ = ["ENDLESS", "Counting", "chat_documents", "size_in_utf8", "text_documents"]

BATCH_CHARS = 1 << 21  # texts encoded at a time: enough for all cores, little memory
ENDLESS = "the chat template writes no end token after an answer: nothing teaches answers to end"
MAX_PLACES = 3  # that are told of one reason
Tell = Callable[[int, int, int], None]


class Counting:
    """What has gone by: ``documents``, ``tokens``, ``nbytes`` of their texts in UTF-8 (of conversations 0),
    what was ``left_out`` for which reason, with the ``places`` of the first of it where they are known, and
    what is worth knowing of what was taken (``noted``). ``progress`` is told the first three after each
    batch. ``strict``: what would be left out is refused."""

    def __init__(self, progress: Tell | None = None, *, strict: bool = False) -> None:
        self.documents = self.tokens = self.nbytes = 0
        self.left_out: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}
        self.strict = strict
        self.noted: dict[str, str] = {}
        self._progress = progress

    def add(self, documents: int, tokens: int, nbytes: int) -> None:
        self.documents += documents
        self.tokens += tokens
        self.nbytes += nbytes
        if self._progress is not None:
            self._progress(self.documents, self.tokens, self.nbytes)

    def skip(self, reason: str, where: str) -> None:
        """Something at ``where`` is left out. Raises ConfigError where that is not wanted."""
        if self.strict:
            raise ConfigError(f"{where}: {reason}", "mend it, or leave out --strict")
        self.left_out[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < MAX_PLACES:
            places.append(where)

    def note(self, what: str, where: str) -> None:
        """Something worth knowing, first seen at ``where``."""
        self.noted.setdefault(what, where)

    def notes(self) -> Iterator[str]:
        """What is worth knowing, each with its first place."""
        yield from (f"{what} (the first: {where})" for what, where in self.noted.items())

    def told(self) -> Iterator[tuple[int, str]]:
        """How many were left out, and why, the most frequent reason first."""
        for reason, count in self.left_out.most_common():
            if count:
                first = self.places.get(reason)
                yield count, reason + (f" (the first: {'; '.join(first)})" if first else "")

    def lines(self) -> list[str]:
        """All of it for people, a line each."""
        left_out = [f"left out {count:,}: {why}" for count, why in self.told()]
        return [*left_out, *(f"note: {note}" for note in self.notes())]

    def each(self, documents: Iterable[Document]) -> Iterator[Document]:
        """``documents``, each counted as it is made."""
        for document in documents:
            self.add(1, len(document.tokens), 0)
            yield document


def text_documents(
    texts: Iterable[str], tokenizer: Tokenizer, counting: Counting | None = None
) -> Iterator[Document]:
    """Each text between the begin token, where the tokenizer has one, and its first end token. A control
    token that a text spells stays text."""
    before, end = tokenizer.prefix_ids, list(tokenizer.eos_token_ids[:1])
    for batch in _batches(texts):
        encoded = tokenizer.encode_many(batch)
        made = [
            Document(tokens=np.asarray([*before, *ids, *end], np.int64), mark=mark_of(text))
            for text, ids in zip(batch, encoded, strict=True)
        ]
        if counting is not None:
            counting.add(len(made), sum(len(d.tokens) for d in made), sum(map(size_in_utf8, batch)))
        yield from made


def chat_documents(
    conversations: Iterable[tuple[Any, ...]], encoder: ChatEncoder, counting: Counting | None = None
) -> Iterator[Document]:
    """Each ``Conversation`` with its loss mask; those left out are counted by reason. Raises ConfigError
    for what is no conversation where nobody counts, or where that is all that there is."""

    def read(one: Conversation, where: str) -> Document | None:
        try:
            return encoder.encode(one.messages, where=where, tools=one.tools, options=one.options)
        except LeftOut as reason:
            if counting is not None:
                counting.skip(str(reason), where)
            return None

    every = ((one.where, one) for one in (Conversation(*each) for each in conversations))
    for one, made in right_ones(every, read, untold if counting is None else counting.skip):
        if made is None:
            continue
        if counting is not None:
            counting.add(1, len(made.tokens), 0)
            if not encoder.ends(made):
                counting.note(ENDLESS, one.where)
        yield replace(made, mark=mark_of_messages(one.messages))


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
