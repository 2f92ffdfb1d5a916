"""Tokenizers in GGUF metadata read the same ids as the folders they come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minicpm4.errors import TextError
from minicpm4.text import tokenizer_from_gguf
from minicpm4.text.byte_level import WORDS, byte_level_backend
from minicpm4.text.gguf_write import differences
from minicpm4.text.model_text import ModelText
from tests.text.vocabularies import SAMPLES, train_sentencepiece

DATA = Path(__file__).parent / "data"
WORDS_OF = ["gpt-2", "qwen2", "deepseek-llm", "deepseek-coder"]
IM_END = "<|im_end|>"


def byte_level_folder(folder: Path, kind: str) -> Path:
    keys = json.loads((DATA / f"vocab_{kind}.json").read_text())["metadata"]
    vocab = {token: i for i, token in enumerate(keys["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in keys["tokenizer.ggml.merges"]]
    backend = byte_level_backend(vocab, merges, kind)
    backend.add_special_tokens([IM_END])
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(backend.to_str())
    settings = {
        "eos_token": IM_END,
        "chat_template": [
            {"name": "default", "template": "a{{ messages[0].content }}" + IM_END},
            {"name": "tool_use", "template": "b{{ messages[0].content }}" + IM_END},
        ],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("kind", WORDS_OF)
def test_byte_level_vocabularies(kind: str, tmp_path: Path) -> None:
    text = ModelText(byte_level_folder(tmp_path, kind))
    rows = text.tokenizer.vocab_size + 5
    keys = text.gguf_keys(rows)
    pre = keys["tokenizer.ggml.pre"]
    assert WORDS[pre].patterns == WORDS[kind].patterns and WORDS[pre].composed == WORDS[kind].composed
    assert len(keys["tokenizer.ggml.tokens"]) == rows == len(keys["tokenizer.ggml.token_type"])
    assert keys["tokenizer.ggml.token_type"][-1] == 5 and not keys["tokenizer.ggml.add_bos_token"]
    written = tokenizer_from_gguf(keys)
    for sample in [*SAMPLES, f"a{IM_END} b"]:
        assert written.encode(sample) == text.tokenizer.encode(sample), sample
    # Readers of GGUF files know some end tokens by their spelling.
    assert written.eos_token_ids[:1] == text.tokenizer.eos_token_ids[:1]
    assert set(written.eos_token_ids) >= set(text.tokenizer.eos_token_ids)
    assert keys["tokenizer.chat_templates"] == ["tool_use"]
    assert keys["tokenizer.chat_template.tool_use"].startswith("b")
    assert differences(text.tokenizer, written) == (None, None)


@pytest.mark.parametrize(
    "options", [{}, {"byte_fallback": False}, {"add_dummy_prefix": False}, {"symbols": "<ud>,::"}], ids=str
)
def test_sentencepiece_models(options: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(**options))  # type: ignore[arg-type]
    added = {"900": {"content": IM_END, "special": True}}
    settings = {"added_tokens_decoder": added, "eos_token": IM_END, "tokenizer_class": "LlamaTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    text = ModelText(tmp_path)
    keys = text.gguf_keys(920)
    assert keys["tokenizer.ggml.add_space_prefix"] == options.get("add_dummy_prefix", True)
    assert keys["tokenizer.ggml.token_type"][900] == 3 and keys["tokenizer.ggml.eos_token_id"] == 900
    types = set(keys["tokenizer.ggml.token_type"].tolist())
    assert (6 in types) == options.get("byte_fallback", True) and (4 in types) == ("symbols" in options)
    written = tokenizer_from_gguf(keys)
    for sample in SAMPLES:
        assert written.encode(sample) == text.tokenizer.encode(sample), sample


def test_a_sentencepiece_vocabulary_in_tokenizer_json(tmp_path: Path) -> None:
    """Without a tokenizer.model scores are made of the order of merges."""
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece())
    own = ModelText(tmp_path).tokenizer
    state = json.loads(own.backend.to_str())
    steps = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    state["normalizer"] = {"type": "Sequence", "normalizers": steps}
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    text = ModelText(tmp_path)
    written = tokenizer_from_gguf(text.gguf_keys(900))
    for sample in SAMPLES:
        if sample.strip():
            assert written.encode(sample) == text.tokenizer.encode(sample), sample


def test_what_the_keys_cannot_say_is_refused(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path / "a", "gpt-2")
    with pytest.raises(TextError, match="the model rows for 40"):
        ModelText(folder).gguf_keys(40)
    state = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "a+|[^a]+"}, "behavior": "Isolated", "invert": False}
    bytes_only = state["pre_tokenizer"]["pretokenizers"][-1]
    for changes, message in (
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_only]}},
            "has no name in GGUF",
        ),
        ({"normalizer": {"type": "Lowercase"}}, "normaliser"),
        ({"model": state["model"] | {"ignore_merges": True}}, "has no name in GGUF"),
    ):
        (folder / "tokenizer.json").write_text(json.dumps(state | changes))
        with pytest.raises(TextError, match=message):
            ModelText(folder).gguf_keys(100_000)
    (tmp_path / "u").mkdir()
    (tmp_path / "u" / "tokenizer.model").write_bytes(train_sentencepiece("unigram"))
    with pytest.raises(TextError, match="Unigram"):
        ModelText(tmp_path / "u").gguf_keys(900)


def test_a_difference_is_found(tmp_path: Path) -> None:
    keys = ModelText(byte_level_folder(tmp_path, "gpt-2")).gguf_keys(2000)
    own = tokenizer_from_gguf(keys)
    assert differences(own, own) == (None, None)
    plain, special = differences(
        own,
        tokenizer_from_gguf(keys | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 3}),
    )
    assert plain is not None and special is not None
