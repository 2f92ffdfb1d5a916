"""A model's vocabulary as llguidance wants it, and what grammars ask of tokens."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import UnsupportedError
from minicpm4.text.tokenizer import Tokenizer

__all__ = ["Vocabulary"]

# What is added to the logits of eight tokens for each byte of a mask: -inf where a bit is 0. To look it up
# takes a tenth of the time of writing through a mask of single tokens.
_ALLOWED = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_ADDED = np.where(_ALLOWED, 0, -np.inf).astype(np.float32)


class Vocabulary:
    """A model's tokens as llguidance wants them.

    Without an end token it has one behind all: answers end there where nothing else can follow.
    """

    def __init__(self, tokenizer: Tokenizer, end_ids: frozenset[int], size: int) -> None:
        self._tokenizer, self.end_ids, self.size = tokenizer, end_ids, size
        self._llg: Any = None
        self._added = np.empty((0, 8), np.float32)  # new memory each time would cost more than filling it
        self._across: dict[bytes, dict[bytes, list[tuple[int, bytes]]]] = {}
        self._lock = threading.Lock()

    def added(self, mask: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What is added to the logits for a mask; until the next call. For one thread at a time."""
        if len(self._added) != len(mask):
            self._added = np.empty((len(mask), 8), np.float32)
        np.take(_ADDED, mask, axis=0, out=self._added, mode="clip")
        return self._added.reshape(-1)

    def bytes_of(self, token: int) -> bytes:
        return self._tokenizer.token_bytes(token)

    def llg(self, name: str) -> Any:
        """The LLTokenizer. Raises UnsupportedError, which names the parameter ``name``."""
        if self._llg is None:
            try:
                package = import_module("llguidance")
            except ImportError as error:
                raise UnsupportedError(
                    f"{name} needs the package llguidance ({error})",
                    "in the checkout: pip install -e '.[grammar]', or: pip install 'llguidance>=1.9,<2'",
                ) from error
            source = _Source(self._tokenizer, self.end_ids, self.size)
            self._llg = source.llg = package.LLTokenizer(
                package.TokenizerWrapper(source),
                eos_token=sorted(self.end_ids) or [self.size],
            )
        return self._llg

    @cached_property
    def digits(self) -> NDArray[np.int64]:
        """The tokens that begin with a digit."""
        tokens = range(min(self._tokenizer.vocab_size, self.size))
        return np.array([token for token in tokens if self.bytes_of(token)[:1].isdigit()], np.int64)

    @cached_property
    def _sorted(self) -> list[tuple[bytes, int]]:
        tokens = range(min(self._tokenizer.vocab_size, self.size))
        return sorted((self.bytes_of(token), token) for token in tokens)

    def with_start(self, start: bytes) -> Iterator[int]:
        """Tokens whose text begins with ``start``."""
        at = bisect_left(self._sorted, (start, 0))
        while at < len(self._sorted) and self._sorted[at][0].startswith(start):
            yield self._sorted[at][1]
            at += 1

    def across(self, tail: bytes, mark: bytes) -> Iterator[tuple[int, bytes]]:
        """Tokens that would complete ``mark`` behind ``tail`` and go on, and with what."""
        for rest, tokens in self._tokens_across(mark).items():
            if tail.endswith(mark[: len(mark) - len(rest)]):
                yield from tokens

    def prepare(self, marks: Iterable[bytes]) -> None:
        """Look for the tokens that go across these marks, which takes a tenth of a second each."""
        for mark in marks:
            self._tokens_across(mark)

    def _tokens_across(self, mark: bytes) -> dict[bytes, list[tuple[int, bytes]]]:
        """Of each end of a mark, the tokens that begin with it and hold more; of the whole mark, those that
        hold it anywhere."""
        with self._lock:
            if mark not in self._across:
                found: dict[bytes, list[tuple[int, bytes]]] = {}
                ends = [mark[i:] for i in range(1, len(mark))]
                for token in range(min(self._tokenizer.vocab_size, self.size)):
                    text = self.bytes_of(token)
                    for end in ends if text[:1] in mark else ():
                        if text.startswith(end) and len(text) > len(end):
                            found.setdefault(end, []).append((token, text[len(end) :]))
                    if mark in text and (rest := text.partition(mark)[2]):
                        found.setdefault(mark, []).append((token, rest))
                self._across[mark] = found
            return self._across[mark]


class _Source:
    """What TokenizerWrapper asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, end_ids: frozenset[int], size: int) -> None:
        self.eos_token_id = min(end_ids, default=size)
        self.bos_token_id = tokenizer.bos_token_id
        count = min(tokenizer.vocab_size, size)
        self.tokens = [tokenizer.token_bytes(token) for token in range(count)]
        self.tokens += [b""] * (max(size, *end_ids) + 1 - count if end_ids else size - count)
        special = {*tokenizer.control_tokens.values(), *end_ids}
        if not end_ids:
            self.tokens.append(b"<end>")
            special.add(size)
        self.special_token_ids = sorted(token for token in special if token < len(self.tokens))
        self._tokenizer, self.llg = tokenizer, None

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens of ``text`` in the middle of an answer, the bytes of which are those of ``text``."""
        if isinstance(text, bytes):  # TokenizerWrapper asks which of the two we take
            raise TypeError("text, not bytes")
        ids = self._tokenizer.encode_after(text)
        if self.llg is not None and b"".join(map(self._tokenizer.token_bytes, ids)) != text.encode():
            ids = self.llg.greedy_tokenize(text)  # normalised, or with no tokens for a character
        return ids
