"""Copies are passages of the text itself, as long as is promised, and what of them can be known is learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minicpm4.data.copies import LEAST, copies
from minicpm4.data.packing import text_documents
from minicpm4.data.shards import ShardSet, write_shards
from minicpm4.errors import ConfigError
from minicpm4.text import Tokenizer
from tests.data.sets import TEXTS, own_tokenizer


@pytest.fixture(scope="module", params=["own", "sp"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return own_tokenizer() if request.param == "own" else request.getfixturevalue("sp_pair")()[0]


def pack(folder: Path, tokenizer: Tokenizer, texts: list[str]) -> ShardSet:
    return write_shards(
        folder, text_documents(texts, tokenizer), vocab_size=tokenizer.vocab_size, about={"tokenizer": "t"}
    )


def test_passages_are_of_the_text_and_of_the_promised_length(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = ["a", "", *TEXTS]  # the first two are too short for any passage
    haystack = pack(tmp_path / "s", tokenizer, texts)
    rows = [haystack.read(i, 0, 1 << 20)[0].tolist() for i in range(len(haystack))]
    before, marks = len(tokenizer.prefix_ids), {*tokenizer.prefix_ids, *tokenizer.eos_token_ids}
    sizes = []
    for made in copies(tokenizer, haystack, 300, [64, 40]):
        size, odd = divmod(len(made.tokens) - before, 2)
        one, other = np.split(made.tokens[before:], 2)
        assert not odd and size >= LEAST and np.array_equal(one, other)
        assert made.tokens[:before].tolist() == list(tokenizer.prefix_ids)
        assert marks.isdisjoint(one.tolist())
        assert any(one.tolist() == row[i : i + size] for row in rows for i in range(len(row)))
        assert made.learn is not None and np.flatnonzero(made.learn).tolist() == list(
            range(before + size + 1, before + 2 * size)
        )
        sizes.append(size)
    assert len(set(sizes)) > 10


def test_the_whole_of_a_short_text_may_be_a_passage(tmp_path: Path, tokenizer: Tokenizer) -> None:
    haystack = pack(tmp_path / "s", tokenizer, ["a", next(text for text in TEXTS if len(text) > 99)])
    shortest = min(haystack.lengths.tolist())
    assert shortest < LEAST
    found = {len(made.tokens) for made in copies(tokenizer, haystack, 50, [1 << 12])}
    whole = int(haystack.lengths[1]) - len(tokenizer.prefix_ids) - len(tokenizer.eos_token_ids[:1])
    assert max(found) == len(tokenizer.prefix_ids) + 2 * whole


def test_texts_without_a_passage_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="no text to copy from has 8 tokens"):
        next(copies(tokenizer, pack(tmp_path / "s", tokenizer, ["a", "b"]), 1, [64]))
