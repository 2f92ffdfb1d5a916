"""Folders that transformers saved, and kinds of words in GGUF files: ids and words are the references'."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from minicpm4.data.tokenizer import take_tokenizer
from minicpm4.text.byte_level import WORDS, byte_level_backend
from minicpm4.text.model_text import ModelText
from minicpm4.text.pieces import byte_of_char
from tests.text.families import CHATS, FAMILIES, reference_chat, save, texts

DATA = Path(__file__).with_name("data")
VERSIONS = ("4.57", "5.23")
BYTES = {char: i for i, char in enumerate(byte_of_char())}


@cache
def saved(version: str) -> Any:
    return json.loads(gzip.decompress((DATA / f"folders_{version}.json.gz").read_bytes()))


def unpacked(folder: Path, version: str, name: str) -> Any:
    kept = saved(version)["folders"][name]
    for file, content in kept["files"].items():
        (folder / file).write_text(content, encoding="utf-8")
    return kept


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_ids_of_texts_and_chats_are_those_of_transformers(tmp_path: Path, version: str, name: str) -> None:
    (tmp_path / "a").mkdir()
    kept = unpacked(tmp_path / "a", version, name)
    take_tokenizer(ModelText(tmp_path / "a"), tmp_path / "b")
    for place in ("a", "b"):
        text = ModelText(tmp_path / place)
        alone = Backend.from_file(str(tmp_path / place / "tokenizer.json"))
        for case, ids in kept["cases"]:
            assert text.tokenizer.encode(case, add_special_tokens=False) == ids, case
            assert alone.encode(case, add_special_tokens=False).ids == ids, case
        assert text.tokenizer.encode("a") == kept["around"] == alone.encode("a").ids
        assert [text.encode_chat(chat) for chat in CHATS] == kept["chats"]


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_vocab_and_merges_are_read_as_tokenizer_json_is(tmp_path: Path, name: str) -> None:
    kept = unpacked(tmp_path, "4.57", name)
    (tmp_path / "tokenizer.json").unlink()
    text = ModelText(tmp_path)
    assert "merges.txt" in text.files()
    for case, ids in kept["cases"]:
        assert text.tokenizer.encode(case, add_special_tokens=False) == ids, case
    assert [text.encode_chat(chat) for chat in CHATS] == kept["chats"]


def test_a_space_before_a_text_of_gpt2s_words_is_one() -> None:
    backend = byte_level_backend(BYTES, [], "gpt-2", add_prefix_space=True)
    plain = byte_level_backend(BYTES, [], "gpt-2")
    for text in ("it's 2024, ok", " a", "x-y\n z"):
        first = [] if text.startswith(" ") else plain.encode(" ").ids
        assert backend.encode(text).ids == first + plain.encode(text).ids


@pytest.mark.parametrize("name", FAMILIES)
def test_any_text_has_the_ids_of_the_transformers_that_is_here(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    save(name, tmp_path)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), ModelText(tmp_path)
    for case in texts(17, 400, list(theirs.get_added_vocab())):
        assert ours.tokenizer.encode(case, add_special_tokens=False) == theirs.encode(
            case, add_special_tokens=False
        )
    assert [ours.encode_chat(chat) for chat in CHATS] == [reference_chat(theirs, chat) for chat in CHATS]


def test_every_kind_but_one_has_words_of_a_reference() -> None:
    kinds = json.loads((DATA / "words.json").read_text(encoding="utf-8"))["kinds"]
    assert set(WORDS) - set(kinds) == {"deepseek-llm"}  # ids of llama.cpp, in test_tokenizer.py


@pytest.mark.parametrize("kind", sorted(set(WORDS) - {"deepseek-llm"}))
def test_words_are_those_of_the_reference(kind: str) -> None:
    kept = json.loads((DATA / "words.json").read_text(encoding="utf-8"))
    backend = byte_level_backend(BYTES, [], kind)
    for text, lengths in zip(kept["texts"], kept["kinds"][kind]["lengths"], strict=True):
        spans = [span for _, span in backend.pre_tokenizer.pre_tokenize_str(text)]
        assert [stop - start for start, stop in spans] == lengths, text


def test_the_kinds_are_told_apart() -> None:
    kept = json.loads((DATA / "words.json").read_text(encoding="utf-8"))["kinds"]
    ways = {tuple(map(tuple, kept[kind]["lengths"])) for kind in WORDS if kind in kept}
    assert len(ways) == len({words.patterns for words in WORDS.values()}) - 1


@pytest.mark.parametrize("kind", sorted(WORDS))
def test_text_is_composed_where_the_model_saw_it_so(kind: str) -> None:
    char, *rest = (c for b in "é".encode() for c, value in byte_of_char().items() if value == b)
    vocab = BYTES | {char + rest[0]: 256}
    backend = byte_level_backend(vocab, [(char, rest[0])], kind)
    composed = kind in ("qwen2", "deepseek-r1-qwen", "f2llmv2")
    assert (backend.encode("e\u0301").ids == [256]) == composed
