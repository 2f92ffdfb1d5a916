"""Tokenizers of strangers: ids, spellings and metadata that no tokenizer has are refused in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from minicpm4.errors import TextError
from minicpm4.text.gguf_vocab import tokenizer_from_gguf
from minicpm4.text.load import load_tokenizer
from minicpm4.text.template import chat_template_from_gguf
from tests.fixtures.byte_tokenizer import write_tokenizer

GGUF: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.merges": ["a b"],
}


@pytest.mark.parametrize("token_id", [2_000_000, (1 << 31) - 1, (1 << 32) - 1])
def test_ids_are_bounded(tmp_path: Path, token_id: int) -> None:
    write_tokenizer(tmp_path, 300)
    file = tmp_path / "tokenizer.json"
    table = json.loads(file.read_text())
    table["model"]["vocab"]["¥"] = token_id
    for indent in (None, 1):
        file.write_text(json.dumps(table, indent=indent))
        with pytest.raises(TextError, match=r"has a token with the id|is not a tokenizer file"):
            load_tokenizer(tmp_path)


def test_long_numbers_in_spellings_are_no_ids(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 300)
    file = tmp_path / "tokenizer.json"
    table = json.loads(file.read_text())
    table["model"]["vocab"][": 99999999"] = 300
    file.write_text(json.dumps(table))
    assert load_tokenizer(tmp_path).vocab_size >= 300


@pytest.mark.parametrize("name", ["bos_token", "additional_special_tokens", "added_tokens_decoder"])
def test_lone_surrogates_are_refused(tmp_path: Path, name: str) -> None:
    write_tokenizer(tmp_path, 300)
    odd: Any = "\ud800"
    odd = {
        "bos_token": odd,
        "additional_special_tokens": [odd],
        "added_tokens_decoder": {"5": {"content": odd}},
    }[name]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({name: odd}))
    with pytest.raises(TextError, match="is not valid Unicode"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", 5),
        ("tokens", {"a": 1}),
        ("merges", 5),
        ("pre", ["a"]),
        ("token_type", [math.inf] * 3),
        ("token_type", 1.5),
    ],
)
def test_metadata_of_other_types_is_refused(key: str, value: Any) -> None:
    with pytest.raises(TextError, match=rf"tokenizer\.ggml\.{key}"):
        tokenizer_from_gguf(GGUF | {f"tokenizer.ggml.{key}": value})


@pytest.mark.parametrize("names", [1.5, "tool_use", ["x"] * 65])
def test_names_of_templates_are_a_list(names: Any) -> None:
    table = GGUF | {"tokenizer.chat_template": "x", "tokenizer.chat_templates": names}
    with pytest.raises(TextError, match="is no list of names"):
        chat_template_from_gguf(table, tokenizer_from_gguf(GGUF))
