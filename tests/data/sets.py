"""Small packed sets, tokenizers and templates that the tests of data share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from minicpm4.data.shards import Document, ShardSet, write_shards
from minicpm4.data.tokenizer import train_tokenizer
from minicpm4.text import Tokenizer, load_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog. It was seen again, near the river.\n\nThen it left.\n" * 20,
    "今天天气很好，我们去公园吧。日本語と한국어。" * 40,
    "emoji 😀👩‍👩‍👧‍👦 and naïve café, coöperate; Ünïcödé. " * 30,
    "def f(x):\n    return x ** 2  # ok\n\n\nclass A:\n    pass\n" * 30,
]


def make_set(folder: Path, lengths: Sequence[int], first: int = 0, **about: bool) -> ShardSet:
    """Documents whose tokens are all different: ``first``, ``first`` + 1, …; every third is learnt where
    ``learn`` is given."""
    learn = about.pop("learn", False)
    documents, token = [], first
    for length in lengths:
        tokens = np.arange(token, token + length)
        documents.append(Document(tokens=tokens, learn=tokens % 3 == 0 if learn else None))
        token += length
    return write_shards(
        folder, documents, vocab_size=60000, about={"tokenizer": "t", **about}, shard_tokens=40
    )


@cache
def tokenizer_folder() -> Path:
    """Of a tokenizer as `minicpm4 data tokenizer` makes it."""
    folder = Path(mkdtemp(prefix="minicpm4-test-"))
    train_tokenizer(TEXTS, 500, folder)
    return folder


@cache
def own_tokenizer() -> Tokenizer:
    return load_tokenizer(tokenizer_folder())
