"""Tokenizer folders that are missing something or damaged."""

from __future__ import annotations

import json

import pytest

from minicpm4.errors import TextError
from minicpm4.text import load, load_tokenizer
from tests.fixtures.byte_tokenizer import write_tokenizer


def test_a_folder_without_tokenizer(tmp_path):
    with pytest.raises(TextError, match=r"holds no tokenizer\. it needs tokenizer\.json or tokenizer\.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": 3}', b"[" * 5000])
def test_a_damaged_tokenizer_json(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TextError, match=r"tokenizer\.json is not a tokenizer file: .*may be damaged"):
        load_tokenizer(tmp_path)


def test_files_over_the_limit(tmp_path, monkeypatch):
    write_tokenizer(tmp_path, 300)
    monkeypatch.setattr(load, "MAX_FILE_BYTES", 100)
    with pytest.raises(TextError, match=r"tokenizer\.json has \d+ bytes, the limit is 100"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"])
def test_a_file_of_over_256_mib_is_refused_unread(tmp_path, name):
    if name in ("vocab.json", "merges.txt"):
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
        (tmp_path / "vocab.json").write_text('{"a": 0}')
        (tmp_path / "merges.txt").write_text("")
    with (tmp_path / name).open("wb") as file:
        file.truncate((256 << 20) + 1)  # takes no room
    with pytest.raises(TextError, match=rf"{name} has 268,?435,?457 bytes, the limit is 268,?435,?456"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"tokenizer_config\.json is not JSON: .*damaged"),
        ("[" * 100_000, "is nested too deep"),
        ("[]", "holds a list, not a table"),
        ('{"bos_token": 3}', "bos_token = 3 is not a string"),
        ('{"added_tokens_decoder": {"x": {"content": "y"}}}', "added_tokens_decoder is malformed"),
        ('{"added_tokens_decoder": {"1": {}}}', "added_tokens_decoder is malformed"),
        ('{"added_tokens_decoder": [1]}', "added_tokens_decoder is malformed"),
    ],
)
def test_damaged_settings(tmp_path, content, message):
    write_tokenizer(tmp_path, 300)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(TextError, match=message):
        load_tokenizer(tmp_path)


def test_tokenizer_json_wins_over_tokenizer_model(tmp_path):
    write_tokenizer(tmp_path, 300)
    (tmp_path / "tokenizer.model").write_bytes(b"damaged")
    assert load_tokenizer(tmp_path).vocab_size == 300


def test_settings_without_bos(tmp_path):
    write_tokenizer(tmp_path, 300, bos=False)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.bos_token_id is None and tokenizer.eos_token_ids == (257,)
    assert tokenizer.encode("a") == tokenizer.encode("a", add_special_tokens=False)
