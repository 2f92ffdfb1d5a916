"""A text's own hash decides whether it is held out; order, number, tokenizer and packer do not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicpm4.data.corpora import Corpus, Made
from minicpm4.data.holdout import held_out, mark_of, mark_of_messages, split
from minicpm4.data.packer import Haystack, Side, pack_all, pack_set, require_sides
from minicpm4.data.shards import Chosen, ShardSet
from minicpm4.data.tokenizer import train_tokenizer
from minicpm4.errors import ConfigError
from minicpm4.text.model_text import ModelText
from tests.data.sets import TEXTS, tokenizer_folder

DOCUMENTS = st.lists(st.text(min_size=1, max_size=4), max_size=30)
SHARE = 0.3


@given(DOCUMENTS, st.floats(0, 1), st.randoms())
def test_a_split_depends_on_nothing_but_the_text(documents: list[str], share: float, rng: Any) -> None:
    held = set(split(documents, share, True, mark_of))
    rest = set(split(documents, share, False, mark_of))
    assert held | rest == set(documents) and not held & rest
    rng.shuffle(documents)
    assert set(split([*documents, "more"], share, True, mark_of)) - {"more"} == held - {"more"}


def test_a_split_holds_out_its_share_and_a_larger_one_more() -> None:
    marks = np.array([mark_of(str(i)) for i in range(4000)], np.uint64)
    assert abs(held_out(marks, 0.1).sum() - 400) < 60
    assert not held_out(marks, 0.0).any() and held_out(marks, 1.0).all()
    assert (held_out(marks, 0.2) >= held_out(marks, 0.1)).all()


def test_fields_that_are_null_make_no_other_conversation() -> None:
    """A row of parquet has all fields that any message has, a line of JSON those that it names."""
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [1]}]
    nulls = [{"name": None, **turns[0], "tool_calls": None}, {**turns[1], "weight": None, "name": None}]
    assert mark_of_messages(nulls) == mark_of_messages(turns)
    assert mark_of_messages([turns[0], {**turns[1], "content": ""}]) != mark_of_messages(turns)


def test_the_order_of_keys_makes_no_other_conversation() -> None:
    one, other = {"role": "user", "content": "é"}, {"content": "é", "role": "user"}
    assert mark_of_messages([one]) == mark_of_messages([other]) != mark_of_messages([one, one])


def own() -> ModelText:
    return ModelText(tokenizer_folder())


def lines(file: Path, numbers: range) -> Corpus:
    """Texts, one for each number."""
    file.write_text("".join(json.dumps({"text": f"text number {i}"}) + "\n" for i in numbers))
    return Corpus(kind="jsonl", paths=(str(file),), holdout=SHARE)


def decoded(found: ShardSet | Chosen, tokenizer: ModelText, numbers: Any = None) -> set[str]:
    read = (
        found.read(int(i), 0, 99)[0].tolist() for i in (range(len(found)) if numbers is None else numbers)
    )
    return {tokenizer.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in read}


def held(found: ShardSet, tokenizer: ModelText) -> set[str]:
    return decoded(found, tokenizer, found.chosen(SHARE, held_out=True))


def test_neither_order_number_tokenizer_nor_packer_move_a_text(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 300, tmp_path / "tok")
    other = ModelText(tmp_path / "tok")
    corpora = {
        "a": lines(tmp_path / "a.jsonl", range(60)),
        "b": lines(tmp_path / "b.jsonl", range(79, -1, -1)),
    }
    files = {name: corpus.files() for name, corpus in corpora.items()}
    one = pack_all(corpora, files, own(), tmp_path / "one", lambda line: None)
    two = pack_all(corpora, files, other, tmp_path / "two", lambda line: None)
    first = held(one["a"], own())
    assert 8 <= len(first) <= 28 and first == held(two["a"], other)
    assert first == {text for text in held(one["b"], own()) if int(text.split()[-1]) < 60}
    side = Side(share=SHARE, held_out=True)
    apart = pack_set(corpora["a"], tmp_path / "held", own(), files=files["a"], side=side)
    assert decoded(apart, own()) == first
    side = Side(share=SHARE)
    rest = pack_set(corpora["a"], tmp_path / "rest", own(), files=files["a"], side=side)
    assert decoded(rest, own()) == {f"text number {i}" for i in range(60)} - first


def test_what_is_made_of_a_corpus_has_none_of_its_held_out_texts(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": f" w{i:03d}" * 40}) + "\n" for i in range(60)))
    whole = pack_set(Corpus(kind="jsonl", paths=(str(file),)), tmp_path / "a", own(), files=[file])
    made = Corpus(kind="copies", made=Made(haystack="a", documents=200, lengths=(200,)))

    def words(found: ShardSet | Chosen, *numbers: int) -> set[str]:
        # Each text says its word again and again; where a passage is cut, another may seem to stand, once.
        told = [re.findall(r"\bw\d{3}\b", text) for text in decoded(found, own(), numbers or None)]
        return {word for each in told for word in each if each.count(word) > 1}

    held_words = words(whole, *whole.chosen(SHARE, held_out=True))
    assert 8 <= len(held_words) <= 28
    for share, leaks in ((SHARE, False), (0.0, True)):
        copies = pack_set(made, tmp_path / str(share), own(), haystack=Haystack(data=whole, holdout=share))
        assert bool(words(copies) & held_words) == leaks and len(words(copies)) > 25


@pytest.mark.parametrize(
    ("share", "said"),
    [(1e-9, "holds out none of its 60 documents. a hash of each text decides: above 0.0"),
     (1 - 1e-9, "holds out all of its 60 documents. a hash of each text decides: up to 0.9")],
)  # fmt: skip
def test_a_share_that_leaves_a_side_empty_is_refused(tmp_path: Path, share: float, said: str) -> None:
    lines(tmp_path / "a.jsonl", range(60))
    corpus = Corpus(kind="jsonl", paths=(str(tmp_path / "a.jsonl"),), holdout=share)
    found = pack_all({"a": corpus}, {"a": corpus.files()}, own(), tmp_path / "run", lambda line: None)
    with pytest.raises(ConfigError) as refused:
        require_sides("a", found["a"], corpus.holdout)
    assert said in str(refused.value)


def test_a_set_of_an_earlier_version_holds_out_nothing(tmp_path: Path) -> None:
    corpus = lines(tmp_path / "a.jsonl", range(9))
    pack_set(corpus, tmp_path / "a", own(), files=corpus.files())
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    del manifest["shards"][0]["sha256"]["marks"]
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    found = ShardSet(tmp_path / "a")
    assert len(found.chosen(0.0, held_out=False)) == 9
    with pytest.raises(ConfigError, match=r"has no marks of its texts.*pack the data again"):
        found.chosen(SHARE, held_out=False)
