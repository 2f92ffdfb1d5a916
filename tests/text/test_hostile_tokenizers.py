"""Tokenizers of strangers: ids, spellings and metadata that no tokenizer has are refused in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from minicpm4.errors import TextError
from minicpm4.text.gguf_vocab import tokenizer_from_gguf
from minicpm4.text.library import library
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


@pytest.mark.parametrize(
    ("name", "ids", "said"),
    [
        ("<other>", [256], "adds '<s>', which it gives no ids"),
        ("<s>", [4096], "adds the id 4096, which is no token's"),
    ],
)
def test_what_stands_around_a_text_is_known(tmp_path: Path, name: str, ids: list[int], said: str) -> None:
    write_tokenizer(tmp_path, 300)
    file = tmp_path / "tokenizer.json"
    table = json.loads(file.read_text())
    table["post_processor"]["special_tokens"] = {name: {"id": name, "ids": ids, "tokens": [name]}}
    file.write_text(json.dumps(table))
    with pytest.raises(TextError, match=said):
        load_tokenizer(tmp_path)


def test_merges_that_make_no_token_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    """The tokenizers library panics on them: no exception of Python's, and many lines on the terminal."""
    with pytest.raises(
        TextError, match=r"GGUF tokenizer\.ggml\.merges and tokens.*\('b', 'a'\) makes no token"
    ):
        tokenizer_from_gguf(GGUF | {"tokenizer.ggml.merges": ["a b", "b a"]})
    assert capfd.readouterr().err == ""


def test_panics_of_the_library_are_errors_of_ours(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 300)
    file = tmp_path / "tokenizer.json"
    table = json.loads(file.read_text())
    table["model"]["merges"] = [["a", "a"]]
    file.write_text(json.dumps(table))
    with pytest.raises(TextError, match=r"tokenizer\.json is not a tokenizer file"):
        load_tokenizer(tmp_path)
    PanicException = type("PanicException", (BaseException,), {})
    for raised in (PanicException("x"), Exception("x"), OverflowError("x")):
        with pytest.raises(TextError, match="odd: x"), library("odd"):
            raise raised
    for ours in (KeyError("x"), KeyboardInterrupt()):
        with pytest.raises(type(ours)), library("odd"):
            raise ours
