"""Texts become documents as one call of the tokenizer would make them, in order, whatever the batches."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.data import packing
from minicpm4.data.packing import Counting, text_documents
from minicpm4.text import Tokenizer
from tests.data.sets import TEXTS, own_tokenizer

ODD = ["a", "<|im_end|> is text", "<s>", " lead", "天气😀", "x" * 3000, "\n\n"]


@pytest.mark.parametrize("batch", [1, 2500, 1 << 21])
def test_documents_do_not_depend_on_batches(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "BATCH_CHARS", batch)
    own, told = own_tokenizer(), []
    counting = Counting(lambda *now: told.append(now))
    made = list(text_documents(iter([*TEXTS, *ODD]), own, counting))
    wanted = [
        [
            *own.prefix_ids,
            *own.encode(text, add_special_tokens=False, parse_special=False),
            own.eos_token_ids[0],
        ]
        for text in [*TEXTS, *ODD]
    ]
    assert [document.tokens.tolist() for document in made] == wanted
    assert all(document.learn is None for document in made)
    sizes = (len(wanted), sum(map(len, wanted)), sum(len(text.encode()) for text in [*TEXTS, *ODD]))
    assert (counting.documents, counting.tokens, counting.nbytes) == sizes == told[-1]


def one_by_one(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False, parse_special=False) for text in texts]


@settings(max_examples=100)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Cs",)), max_size=30) | st.sampled_from(ODD), max_size=8
    )
)
def test_many_at_once_are_each_as_alone(texts: list[str]) -> None:
    assert own_tokenizer().encode_many(texts) == one_by_one(own_tokenizer(), texts)


@pytest.mark.parametrize("text", ["The", " The", "\nThe", "\n\n", "天气", "a", ".", ""])
def test_text_that_goes_on_gets_no_space_of_its_own(smollm: Tokenizer, sp_pair: Any, text: str) -> None:
    for tokenizer in (smollm, own_tokenizer(), sp_pair()[0]):
        ids = tokenizer.encode_after(text)
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert smollm.encode_after(text) == smollm.encode(text, add_special_tokens=False)


def test_many_at_once_with_real_vocabularies(smollm: Tokenizer, sp_pair: Any) -> None:
    for tokenizer in (smollm, sp_pair()[0]):
        assert tokenizer.encode_many([*TEXTS, *ODD]) == one_by_one(tokenizer, [*TEXTS, *ODD])
