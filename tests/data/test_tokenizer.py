"""A checkpoint's tokenizer, taken along by a run: it encodes, ends and renders chats as the engine's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minicpm4.data.tokenizer import TEMPLATE, take_tokenizer, train_tokenizer
from minicpm4.errors import ConfigError, TextError
from minicpm4.formats.gguf_write import write_gguf
from minicpm4.model.source import open_text
from minicpm4.text import Tokenizer, chat_template_from_gguf, encode_chat, load_chat_template, load_tokenizer
from tests.text.test_gguf_vocab import LLAMA
from tests.text.vocabularies import train_sentencepiece

TEXTS = (
    "",
    "Hello, world",
    " two  spaces\n\ttab",
    "été 😀 中文",
    "a<|im_end|>b",
    "<|im_start|>user\nx<|im_end|>",
)
TURNS = [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4 <|im_end|>"}]


def test_that_of_a_gguf_file(tmp_path: Path, smollm: Tokenizer, smollm_metadata: Any) -> None:
    take_tokenizer(open_text("smollm2-135m-instruct"), tmp_path / "t")
    taken = load_tokenizer(tmp_path / "t")
    for text in TEXTS:
        for special in (True, False):
            ids = smollm.encode(text, add_special_tokens=special, parse_special=special)
            assert taken.encode(text, add_special_tokens=special, parse_special=special) == ids
            assert taken.decode(ids) == smollm.decode(ids)
    assert taken.eos_token_ids == smollm.eos_token_ids and taken.bos_token_id == smollm.bos_token_id
    template, own = (
        load_chat_template(tmp_path / "t"),
        chat_template_from_gguf(smollm_metadata, smollm),
    )
    assert encode_chat(taken, template, TURNS) == encode_chat(smollm, own, TURNS)
    assert sorted(file.name for file in (tmp_path / "t").iterdir()) == [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_that_of_a_folder_with_all_it_needs(tmp_path: Path) -> None:
    train_tokenizer(["some text " * 50], 300, tmp_path / "a")
    settings = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    del settings["chat_template"], settings["eos_token"]
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "a" / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "a" / "config.json").write_text(json.dumps({"eos_token_id": [2, 4]}))
    (tmp_path / "a" / "model.safetensors").write_bytes(b"x" * 100)
    take_tokenizer(open_text(tmp_path / "a"), tmp_path / "b")
    first, second = load_tokenizer(tmp_path / "a"), load_tokenizer(tmp_path / "b")
    assert first.eos_token_ids == second.eos_token_ids and set(second.eos_token_ids) == {2, 4}
    assert not (tmp_path / "b" / "model.safetensors").exists()
    rendered = [
        encode_chat(own, load_chat_template(tmp_path / name), TURNS)
        for name, own in (("a", first), ("b", second))
    ]
    assert rendered[0] == rendered[1]


def test_sentencepiece_is_taken_as_a_file_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tokenizer.model").write_bytes(train_sentencepiece())
    take_tokenizer(open_text(tmp_path / "a"), tmp_path / "b")
    for text in TEXTS:
        assert load_tokenizer(tmp_path / "b").encode(text) == load_tokenizer(tmp_path / "a").encode(text)


def test_a_folder_without_one_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TextError, match="holds no tokenizer"):
        take_tokenizer(open_text(tmp_path / "empty"), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_gguf_file_s_sentencepiece_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama", **LLAMA}, [])
    with pytest.raises(ConfigError, match=r"m\.gguf is a SentencePiece model.*tokenizer\.model"):
        take_tokenizer(open_text(tmp_path / "m.gguf"), tmp_path / "b")
    assert not (tmp_path / "b").exists()
