"""Tokens of a completion in OpenAI's older form: four lists, and where each token begins in the text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minicpm4.engine.outputs import TokenLogprobs
from minicpm4.text.tokenizer import Tokenizer

LEAST = -9999.0  # what is said of impossible tokens: JSON has no infinity


@dataclass(slots=True)
class TokenLists:
    """Takes the tokens of one text, one after another. ``shown``: whether control tokens stand in it."""

    tokenizer: Tokenizer
    shown: bool
    offset: int = 0
    _bytes: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def take(self, entries: Sequence[tuple[int, TokenLogprobs | None]], *, silent: int = 0) -> dict[str, Any]:
        """The lists for some tokens; the first ``silent`` of them add nothing to the text."""
        lists: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for i, (token, entry) in enumerate(entries):
            lists["tokens"].append(self._name(token))
            lists["token_logprobs"].append(None if entry is None else max(entry.logprob, LEAST))
            lists["top_logprobs"].append(None if entry is None else self._top(entry))
            lists["text_offset"].append(self.offset)
            if i >= silent:
                data = self.tokenizer.token_text_bytes(token, not self.shown)
                self.offset += len(self._bytes.decode(data))
        return lists

    def _name(self, token: int) -> str:
        return self.tokenizer.token_bytes(token).decode(errors="replace")

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """Of two tokens that read alike the better one; the chosen token is always among them."""
        found = {self._name(entry.token_id): max(entry.logprob, LEAST)} if entry.top else {}
        for token, value in entry.top.items():
            name = self._name(token)
            found[name] = max(value, found.get(name, LEAST))
        return found
