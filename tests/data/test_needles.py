"""Needles are where they are said to be, their values are the answers, and lengths are never exceeded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minicpm4.data.needles import NeedleDocument, NeedleMaker
from minicpm4.data.packing import text_documents
from minicpm4.data.shards import ShardSet, write_shards
from minicpm4.errors import ConfigError
from minicpm4.text import Tokenizer
from tests.data.sets import TEXTS, own_tokenizer


def pack(folder: Path, tokenizer: Tokenizer, texts: list[str]) -> ShardSet:
    documents = text_documents(texts, tokenizer)
    return write_shards(folder, documents, vocab_size=tokenizer.vocab_size, about={"tokenizer": "t"})


@pytest.fixture(scope="module", params=["own", "smollm", "sp"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "sp":
        return request.getfixturevalue("sp_pair")()[0]
    return own_tokenizer() if request.param == "own" else request.getfixturevalue("smollm")


@pytest.fixture(scope="module")
def haystack(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return pack(tmp_path_factory.mktemp("needles"), tokenizer, TEXTS)


def text_of(tokenizer: Tokenizer, made: NeedleDocument, start: int, stop: int) -> str:
    """Strictly decoded: what is no UTF-8 is an error."""
    ids = made.tokens[start:stop].tolist()
    return b"".join(tokenizer.token_text_bytes(i) for i in ids).decode("utf-8")


def assert_right(tokenizer: Tokenizer, made: NeedleDocument, length: int) -> None:
    tokens = made.tokens.tolist()
    assert length - 12 <= len(tokens) <= length
    text_of(tokenizer, made, 0, len(tokens))
    for needle in made.needles:
        fact = text_of(tokenizer, made, needle.start, needle.stop)
        assert fact == f"\nThe code of the {needle.key} is {needle.value}.\n"
        text_of(tokenizer, made, 0, needle.start)
    # The very tokens of the needle's line, so that copying is all there is to learn.
    lines = [tokens[needle.start + 1 : needle.stop] for needle in made.asked]
    assert text_of(tokenizer, made, made.prompt, len(tokens)).startswith(f" {made.asked[0].value}.\n")
    assert made.tokens[made.learn].tolist() == [token for line in lines for token in line]
    start = 0
    for needle, line in zip(made.asked, lines, strict=True):
        start += int(np.argmax(made.learn[start:]))
        assert tokens[start : start + len(line)] == line
        asked = f"What is the code of the {needle.key}?\n"
        assert text_of(tokenizer, made, 0, start).endswith(asked)
        start += len(line)


QUESTION = 40  # tokens of it at most
LENGTHS, DEPTHS = st.integers(600, 3000), st.none() | st.floats(0, 1)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1 << 40), LENGTHS, DEPTHS, st.integers(1, 5), st.integers(1, 9))
def test_needles(
    tokenizer: Tokenizer,
    haystack: ShardSet,
    index: int,
    length: int,
    depth: float | None,
    count: int,
    digits: int,
) -> None:
    maker = NeedleMaker(tokenizer, haystack, needles=count, queries=1 + index % count, digits=digits)
    made = maker.make(index, length, depth)
    assert_right(tokenizer, made, length)
    assert len({needle.key for needle in made.needles}) == count and len(made.asked) == 1 + index % count
    assert made.needles[0] in made.asked
    if depth is not None:
        text = made.prompt - sum(needle.stop - needle.start for needle in made.needles) - QUESTION
        assert abs(made.needles[0].depth - depth) <= 0.02 + 9 / text  # eight tokens at least are looked at
    same = NeedleMaker(tokenizer, haystack, needles=count, queries=1 + index % count, digits=digits)
    assert same.make(index, length, depth).tokens.tolist() == made.tokens.tolist()


def test_documents_differ_by_index_and_seed(tokenizer: Tokenizer, haystack: ShardSet) -> None:
    one, other = NeedleMaker(tokenizer, haystack, seed=1), NeedleMaker(tokenizer, haystack, seed=2)
    found = [tuple(d.tokens.tolist()) for maker in (one, other) for d in maker.documents(6, [300, 500])]
    assert len(set(found)) == 12
    assert [len(tokens) > 400 for tokens in found[:4]] == [False, True, False, True]


def test_a_grid_has_its_lengths_and_depths(tokenizer: Tokenizer, haystack: ShardSet) -> None:
    cells = list(NeedleMaker(tokenizer, haystack).grid([400, 900], [0, 0.5, 1], each=2))
    assert [(length, depth) for length, depth, _ in cells[::2]] == [
        (length, depth) for length in (400, 900) for depth in (0, 0.5, 1)
    ]
    for length, depth, made in cells:
        assert_right(tokenizer, made, length)
        assert abs(made.needles[0].depth - depth) < 0.05
    assert len({tuple(made.tokens.tolist()) for _, _, made in cells}) == len(cells)


def test_text_that_is_shorter_than_the_document_comes_again(tmp_path: Path) -> None:
    maker = NeedleMaker(own_tokenizer(), pack(tmp_path, own_tokenizer(), ["Short. Text.", "天气"]))
    assert_right(own_tokenizer(), maker.make(0, 700), 700)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"needles": 0}, "1 of 0 needles cannot be asked for"),
        ({"needles": 2, "queries": 3}, "3 of 2 needles"),
        ({"digits": 19}, r"values of 19 digits are out of range. use 1 to 18"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, options: dict[str, int], said: str) -> None:
    haystack = pack(tmp_path, own_tokenizer(), TEXTS[:1])
    with pytest.raises(ConfigError, match=said):
        NeedleMaker(own_tokenizer(), haystack, **options)
    with pytest.raises(ConfigError, match=r"40 tokens are too few for 1 needles. they and their questions"):
        NeedleMaker(own_tokenizer(), haystack).make(0, 40)
    with pytest.raises(ConfigError, match="the text to hide needles in is empty"):
        NeedleMaker(own_tokenizer(), pack(tmp_path / "e", own_tokenizer(), []))
