"""Copying from the context: a passage of real text, then the same passage again, which is what is learnt.

Small models take long to find out that what came once can be looked up (induction heads; Olsson et al. 2022,
arXiv 2209.11895). Here nearly every token teaches it, and retrieval (``data/needles.py``) builds on it:
a model of 2M parameters finds needles after 0.2M tokens where without copies 1M tokens did not do
(docs/log.md). Document i is a pure function of the seed and i.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from minicpm4.config.strict import require
from minicpm4.data.shards import Document, Documents
from minicpm4.text import Tokenizer

__all__ = ["copies"]

LEAST = 8  # tokens of a passage


def copies(
    tokenizer: Tokenizer, haystack: Documents, count: int, lengths: Sequence[int], seed: int = 0
) -> Iterator[Document]:
    """``count`` documents with passages of random lengths from 8 tokens on, at most half of the ``lengths``
    in turn, without the begin and end tokens of the documents that they are from. Raises ConfigError."""
    require(len(haystack) > 0, "the text to copy from is empty", "pack some text first")
    before = list(tokenizer.prefix_ids)
    inside = haystack.lengths - len(before) - len(tokenizer.eos_token_ids[:1])  # as text_documents packs them
    enough = np.flatnonzero(inside >= LEAST)
    require(len(enough) > 0, f"no text to copy from has {LEAST} tokens", "pack longer texts")
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        most = (lengths[index % len(lengths)] - len(before)) // 2
        require(most >= LEAST, f"{2 * most} tokens are too few for a passage and its copy")
        document = int(enough[rng.integers(len(enough))])
        size = min(int(rng.integers(LEAST, most + 1)), int(inside[document]))
        place = len(before) + int(rng.integers(int(inside[document]) - size + 1))
        passage = haystack.read(document, place, place + size)[0].astype(np.int64)
        tokens = np.concatenate([np.asarray(before, np.int64), passage, passage])
        learn = np.zeros(len(tokens), bool)
        # What comes first in the copy cannot be known.
        learn[len(before) + len(passage) + 1 :] = True
        yield Document(tokens=tokens, learn=learn)
