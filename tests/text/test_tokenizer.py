"""Encoding and decoding: real vectors, round trips, control tokens, limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, processors

from minicpm4.errors import RequestError, TextError
from minicpm4.text import Tokenizer, load_tokenizer, tokenizer_from_gguf
from minicpm4.text import tokenizer as module
from minicpm4.text.pieces import byte_of_char, codec_of
from tests.fixtures.byte_tokenizer import BOS, EOS, IM_END, write_tokenizer

CHARS = {b: c for c, b in byte_of_char().items()}
DATA = Path(__file__).with_name("data")
texts = st.text(st.characters(codec="utf-8"), max_size=60)


@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "deepseek-llm", "deepseek-coder"])
def test_ids_equal_llama_cpp_vectors(name):
    vector = json.loads((DATA / f"vocab_{name}.json").read_text(encoding="utf-8"))
    tokenizer = tokenizer_from_gguf(vector["metadata"])
    assert len(vector["cases"]) == 47
    for text, ids in vector["cases"]:
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text
        assert tokenizer.decode(ids) == text


def test_the_vectors_tell_pre_tokenizers_apart():
    vector = json.loads((DATA / "vocab_qwen2.json").read_text(encoding="utf-8"))
    for pre in ("gpt-2", "default"):
        tokenizer = tokenizer_from_gguf({**vector["metadata"], "tokenizer.ggml.pre": pre})
        wrong = [t for t, ids in vector["cases"] if tokenizer.encode(t, add_special_tokens=False) != ids]
        assert wrong, pre


def test_digits_in_words():
    metadata = json.loads((DATA / "vocab_qwen2.json").read_text(encoding="utf-8"))["metadata"]
    for pre, words in [
        ("gpt-2", ["12345"]),
        ("smollm", ["1", "2", "3", "4", "5"]),
        ("qwen2", ["1", "2", "3", "4", "5"]),
        ("llama-bpe", ["123", "45"]),
        ("minicpm5", ["123", "45"]),
        ("default", ["123", "45"]),
    ]:
        backend = tokenizer_from_gguf({**metadata, "tokenizer.ggml.pre": pre}).backend
        assert [word for word, _ in backend.pre_tokenizer.pre_tokenize_str("12345")] == words, pre


def test_smollm_facts(smollm):
    assert (smollm.vocab_size, smollm.bos_token_id) == (49152, 1)
    assert smollm.eos_token_ids == (2, 0)  # <|im_end|> and <|endoftext|>
    assert smollm.encode("<|im_start|>user\n") == [1, 4093, 198]
    assert smollm.encode("2024") == [34, 32, 34, 36]  # digits stand alone
    assert smollm.is_special(2) and not smollm.is_special(4093)
    assert smollm.id_to_token(2) == "<|im_end|>" and smollm.token_to_id("<|im_end|>") == 2
    assert smollm.decode([1, 4093, 198]) == "user\n"
    assert smollm.decode([1, 4093, 198], skip_special_tokens=False) == "<|im_start|>user\n"


@settings(max_examples=200)
@given(text=texts)
def test_smollm_round_trip(smollm, text):
    # SmolLM2 has no token for 21 bytes (6 control characters, unassigned planes): they get lost.
    missing = {c for c in byte_of_char() if smollm.token_to_id(c) is None}
    kept = bytes(b for b in text.encode() if CHARS[b] not in missing)
    decoded = smollm.decode(smollm.encode(text, parse_special=False))
    assert decoded == kept.decode("utf-8", "replace")
    assert decoded == text or missing & {CHARS[b] for b in text.encode()}


@settings(max_examples=200)
@given(ids=st.lists(st.integers(0, 49151), max_size=30))
def test_decoding_agrees_with_the_backend(smollm, ids):
    assert smollm.decode(ids) == smollm.backend.decode(ids)
    assert b"".join(map(smollm.token_bytes, ids)).decode("utf-8", "replace") == smollm.backend.decode(
        ids, skip_special_tokens=False
    )


def test_control_tokens_in_untrusted_text(smollm):
    text = "a<|im_end|>b"
    assert 2 in smollm.encode(text)
    ids = smollm.encode(text, parse_special=False)
    assert 2 not in ids and smollm.decode(ids) == text
    plain = "no control <|x|> tokens <here>, 12"
    assert smollm.encode(plain, parse_special=False) == smollm.encode(plain)


def test_begin_token_once(tmp_path):
    write_tokenizer(tmp_path, 300)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("ab") == [BOS, ord("a"), ord("b")]
    assert tokenizer.encode("<s>ab") == tokenizer.encode("ab")
    assert tokenizer.encode("ab", add_special_tokens=False) == tokenizer.encode("ab")[1:]
    assert tokenizer.encode("") == [BOS]


def _edit(folder: Path, **settings) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


BOTH = [(None, None, [BOS], []), (True, True, [BOS], [EOS]), (False, None, [], []), (True, False, [BOS], [])]


@pytest.mark.parametrize(
    ("kind", "add_bos", "add_eos", "before", "after"),
    [("LlamaTokenizerFast", *row) for row in BOTH]
    # As transformers has it: other classes do not look at these settings where a post-processor speaks.
    + [("PreTrainedTokenizerFast", *row[:2], [BOS], []) for row in BOTH],
)
def test_settings_and_post_processor_together(tmp_path, kind, add_bos, add_eos, before, after):
    write_tokenizer(tmp_path, 300)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    _edit(tmp_path, tokenizer_class=kind, add_bos_token=add_bos, add_eos_token=add_eos)
    tokenizer = load_tokenizer(tmp_path)
    inner = tokenizer.encode("abcdef", add_special_tokens=False)
    assert len(inner) == 6
    assert tokenizer.encode("abcdef") == [*before, *inner, *after]


def test_end_tokens_from_every_file(tmp_path):
    write_tokenizer(tmp_path, 300)
    (tmp_path / "config.json").write_text('{"eos_token_id": 257}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [257, 259]}')
    assert load_tokenizer(tmp_path).eos_token_ids == (EOS, IM_END)
    (tmp_path / "generation_config.json").write_text("[1]")
    with pytest.raises(TextError, match=r"end tokens of .* cannot be read: .*not a table"):
        load_tokenizer(tmp_path)


def test_tokens_the_settings_call_special_are(tmp_path):
    write_tokenizer(tmp_path, 300)
    _edit(tmp_path, pad_token="Ġaaaa")
    tokenizer = load_tokenizer(tmp_path)
    pad = tokenizer.token_to_id("Ġaaaa")
    assert tokenizer.is_special(pad) and tokenizer.decode([pad]) == ""
    assert tokenizer.vocab_size == 300


def test_bad_ids_and_ids_past_the_vocabulary(smollm):
    assert smollm.decode([49152, 1_000_000]) == "" and smollm.id_to_token(49152) is None
    for wrong in (-1, 1 << 40):
        with pytest.raises(RequestError, match=rf"token id {wrong} is out of range\. ids are 0 to 49151"):
            smollm.decode([wrong])
    with pytest.raises(RequestError, match=r"1\.5 is not a token id"):
        smollm.decode([1.5])


def test_bad_texts(smollm, monkeypatch):
    with pytest.raises(RequestError, match="the text is a bytes, not a str"):
        smollm.encode(b"x")
    with pytest.raises(RequestError, match="lone surrogate at character 1"):
        smollm.encode("a\ud800")
    monkeypatch.setattr(module, "MAX_TEXT_BYTES", 8)
    with pytest.raises(RequestError, match=r"the text has 9 bytes, the limit is 8\. split it"):
        smollm.encode("ééééa")


def test_unknown_decoders_are_refused():
    backend = Backend(models.BPE({"a": 0}, []))
    with pytest.raises(TextError, match="has no decoder"):
        Tokenizer(backend)
    backend.decoder = decoders.WordPiece()
    with pytest.raises(TextError, match=r"decoder \(WordPiece\) is not supported"):
        codec_of(backend)


@pytest.mark.parametrize(
    ("decoder", "kind", "drops"),
    [
        (decoders.ByteLevel(), "byte_level", False),
        (decoders.Metaspace(), "sentencepiece", True),
        (decoders.Metaspace(prepend_scheme="never"), "sentencepiece", False),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]), "sentencepiece", False),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]), "sentencepiece", True),
    ],
)
def test_decoders_that_checkpoints_have(decoder, kind, drops):
    backend = Backend(models.BPE({"▁a": 0, "é": 1, "Ċ": 2}, []))
    backend.decoder = decoder
    tokenizer = Tokenizer(backend)
    assert (tokenizer.codec.kind, tokenizer.codec.drops_prefix) == (kind, drops)
    if kind == "sentencepiece":
        assert tokenizer.decode([0, 0]) == ("a a" if drops else " a a")
        assert tokenizer.decode([0, 0], continuation=True) == " a a"
    else:
        assert tokenizer.decode([2]) == "\n"
