"""Which of many tools a task is about: BM25 over their names and descriptions."""

from __future__ import annotations

import re
from collections.abc import Sequence

import bm25s
import numpy as np

from minicpm4.agents.mcp.hidden import visible
from minicpm4.agents.mcp.tools import Tool

__all__ = ["best_tools"]

MAX_WORDS = 2000  # of one text
_WORD = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_COMMON = frozenset(
    {
        *("a", "an", "and", "any", "are", "as", "at", "be", "by", "can", "for", "from", "has", "have", "if"),
        *("in", "into", "is", "it", "its", "of", "on", "or", "that", "the", "their", "this", "to", "use"),
        *("used", "using", "was", "when", "which", "will", "with", "you", "your"),
    }
)


def best_tools(tools: Sequence[Tool], query: str, most: int) -> list[Tool]:
    """At most ``most`` of them, best first; those that share no word with the query last, in their order."""
    if not tools or most <= 0:
        return []
    wanted = _words(query)
    texts = [_words(f"{one.server} {one.name} {one.name} {one.title} {one.description}") for one in tools]
    known = {word for text in texts for word in text}
    asked = [word for word in wanted if word in known]
    if not asked:
        return list(tools[:most])
    index = bm25s.BM25()
    index.index([text or ["-"] for text in texts], show_progress=False)
    scores = np.asarray(index.get_scores(asked))
    order = np.argsort(-scores, kind="stable")
    return [tools[i] for i in order[:most]]


def _words(text: str) -> list[str]:
    """Words without their endings; of Chinese each character and each two."""
    words = []
    for word in _WORD.findall(_CAMEL.sub(" ", visible(text)))[:MAX_WORDS]:
        if _CHINESE.search(word):
            words += [*word, *(word[i : i + 2] for i in range(len(word) - 1))]
        elif (low := word.lower()) not in _COMMON:
            words.append(_stem(low))
    return words


def _stem(word: str) -> str:
    for end in ("ations", "ation", "ings", "ing", "ies", "ed", "es", "s", "e"):
        if word.endswith(end) and len(word) - len(end) >= 3:
            return word[: -len(end)]
    return word
