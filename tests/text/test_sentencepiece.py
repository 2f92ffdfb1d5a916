"""Ids equal to those of the SentencePiece library, on models that it trained."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.errors import TextError
from minicpm4.text import load_tokenizer
from minicpm4.text.model_text import ModelText
from minicpm4.text.sp_model import parse_sentencepiece
from tests.text.vocabularies import SAMPLES, train_sentencepiece

KINDS = {
    "bpe identity": {},
    "bpe nmt_nfkc": {"rule": "nmt_nfkc"},
    "bpe no bytes": {"byte_fallback": False},
    "bpe no prefix": {"add_dummy_prefix": False},
    "bpe symbols": {"symbols": "<ud>,▁▁▁▁,::"},
    "bpe nfkc symbols": {"rule": "nmt_nfkc", "symbols": "<ud>,::"},
    "unigram": {"model_type": "unigram"},
    "unigram nmt_nfkc": {"model_type": "unigram", "rule": "nmt_nfkc", "byte_fallback": False},
}
IM_END = {"content": "<|im_end|>", "special": True}
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40)
# Words, runs and signs that the small vocabularies have merges for.
wordy = st.lists(
    st.sampled_from(["json", "encode", "de", "f", "  ", " ", "self.", "==", "----", "aaaa", "的", "é", "\n"]),
    max_size=25,
).map("".join)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_sentencepiece(sp_pair, kind):
    ours, theirs = sp_pair(**KINDS[kind])
    for text in [*SAMPLES, "a<ud>b", "<ud>x <ud>", " <ud> y::", "a::b  :: c"]:
        if "unigram" in kind:
            text = text.replace("<0x0A>", "")  # its backend cannot tell a byte's spelling from a piece
        ids = ours.encode(text, add_special_tokens=False, parse_special=False)
        assert ids == theirs.encode(text), text
        if 0 not in ids:  # SentencePiece shows <unk> as a sign of its own
            assert ours.decode(ids) == theirs.decode(ids), text


@settings(max_examples=300)
@given(text=texts | wordy)
def test_any_text_has_sentencepiece_ids_and_comes_back(sp_pair, text):
    ours, theirs = sp_pair()
    ids = ours.encode(text, parse_special=False)
    assert ids == [1, *theirs.encode(text)]
    assert ours.decode(ids) == text.replace("▁", " ")


def test_control_pieces_in_text_follow_parse_special(sp_tokenizer):
    assert sp_tokenizer.encode("a</s>b", parse_special=True).count(2) == 1
    assert 2 not in sp_tokenizer.encode("a</s>b", parse_special=False)
    assert sp_tokenizer.decode(sp_tokenizer.encode("a</s>b", parse_special=False)) == "a</s>b"


def test_added_tokens_get_their_ids_and_a_prefix_after_them(sp_pair):
    entries = {"900": IM_END, "903": {"content": "<|im_start|>", "special": True}, "1": {"content": "<s>"}}
    ours, theirs = sp_pair({"added_tokens_decoder": entries, "eos_token": "<|im_end|>"})
    assert ours.encode("<|im_start|>json<|im_end|>") == [1, 903, *theirs.encode("json"), 900]
    assert (ours.vocab_size, ours.eos_token_ids, ours.bos_token_id) == (904, (900,), 1)
    assert ours.decode([1, 903, *theirs.encode("json"), 900]) == "json"
    assert ours.decode([900], skip_special_tokens=False) == "<|im_end|>"
    assert ours.id_to_token(903) == "<|im_start|>"


def test_special_tokens_that_only_settings_name(sp_pair):
    """As transformers 4 and 5: new ones get the next ids, pieces become special."""
    theirs = sp_pair()[1]
    size, piece = theirs.get_piece_size(), theirs.id_to_piece(600)
    ours, _ = sp_pair({"pad_token": "[PAD]", "additional_special_tokens": ["<|im_end|>", piece]})
    ids = ours.encode("a[PAD]b<|im_end|>", add_special_tokens=False)
    assert size in ids and ids[-1] == size + 1 and ours.decode(ids).replace(" ", "") == "ab"
    assert ours.is_special(600) and ours.decode([600]) == "" and ours.vocab_size == size + 2


def test_tokens_that_take_the_blanks_beside_them(sp_pair):
    flags = {"special": True, "content": "<a>", "lstrip": True}
    entries = {"900": flags, "901": {"content": "<b>", "rstrip": True}}
    ours, theirs = sp_pair({"added_tokens_decoder": entries, "legacy": False})
    for parse in (True, False):
        ids = ours.encode("json <a> json <b>  json", add_special_tokens=False, parse_special=parse)
        assert (901 in ids) and ours.decode(ids[-1:], continuation=True).strip() == "json"
        assert ids[ids.index(901) + 1 :] == ours.encode("<b>json", add_special_tokens=False)[1:]
    ids = ours.encode("json <a>", add_special_tokens=False)
    assert ids == [*theirs.encode("json"), 900] == ours.encode("json<a>", add_special_tokens=False)


def test_tokenizer_json_and_tokenizer_model_give_the_same_ids(sp_pair, tmp_path):
    """MiniCPM4's tokenizer.json has a Prepend normaliser: the prefix after every control token."""
    entries = {"900": IM_END, "901": {"content": "<|im_start|>", "special": True}}
    settings = {"added_tokens_decoder": entries, "bos_token": "<s>", "add_bos_token": True}
    settings |= {"tokenizer_class": "LlamaTokenizer"}
    ours, _ = sp_pair(settings)
    state = json.loads(ours.backend.to_str())
    steps = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    state["normalizer"] = {"type": "Sequence", "normalizers": steps}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load_tokenizer(tmp_path)
    chat = "<|im_start|>user\njson  two<|im_end|>\n<|im_start|>assistant\n"
    for text in [*SAMPLES, chat, chat + "<s></s> x"]:
        for parse in (True, False):
            ids = loaded.encode(text, parse_special=parse)
            assert ids == ours.encode(text, parse_special=parse), text
            assert loaded.decode(ids) == ours.decode(ids)


@pytest.mark.parametrize("settings", [{}, {"tokenizer_class": None}, {"tokenizer_class": "LlamaTokenizer"}])
def test_templates_name_its_begin_and_end_without_a_class(tmp_path, settings):
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece())
    source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": source}))
    text = ModelText(tmp_path)
    assert text.template.render([{"role": "user", "content": "x"}]) == "<s>x</s>"
    assert text.encode_chat([{"role": "user", "content": "x"}])[-1] in text.end_ids


def test_added_tokens_json_of_older_checkpoints(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece())
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 900, "<|word|>": 901}')
    (tmp_path / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<|im_end|>"]}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.is_special(900) and not tokenizer.is_special(901)  # what nobody calls special is text
    (tmp_path / "added_tokens.json").write_text('{"x": "900"}')
    with pytest.raises(TextError, match=r"gives 'x' the id '900'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("token_id", "content", "message"),
    [
        ("5", "<|im_end|>", r"'<\|im_end\|>' has id 5, which is '<0x02>' in the SentencePiece model"),
        ("999999", "x", "has id 999999, far past the vocabulary"),
        ("-1", "x", "id -1, which is out of range"),
        ("900", "json", "the piece .* twice"),
    ],
)
def test_added_tokens_that_contradict_the_model_are_refused(sp_pair, token_id, content, message):
    _, theirs = sp_pair()
    if content == "json":
        content = theirs.id_to_piece(600)
    with pytest.raises(TextError, match=message):
        sp_pair({"added_tokens_decoder": {token_id: {"content": content}}})


def test_begin_and_end_tokens_follow_the_settings(sp_pair):
    assert sp_pair()[0].encode("json")[0] == 1
    ours, theirs = sp_pair({"add_bos_token": False, "add_eos_token": True})
    assert ours.encode("json") == [*theirs.encode("json"), 2]
    assert ours.encode("") == [2]


def test_bytes_of_tokens(sp_pair):
    ours, theirs = sp_pair()
    assert ours.token_bytes(theirs.piece_to_id("<0x0A>")) == b"\n"
    assert ours.token_bytes(theirs.encode("json")[0]).startswith(b" ")
    assert ours.decode(theirs.encode("json"), continuation=True) == " json"


def test_word_models_and_suffix_models_are_refused():
    with pytest.raises(TextError, match=r"t\.model has model type word\. only bpe and unigram"):
        parse_sentencepiece(_with_trainer(b"\x18\x03"), "t.model")
    with pytest.raises(TextError, match="treat_whitespace_as_suffix"):
        parse_sentencepiece(_with_trainer(b"\xc0\x01\x01"))
    with pytest.raises(TextError, match="escape_whitespaces off"):
        parse_sentencepiece(b"\x1a\x02\x28\x00")


def _with_trainer(fields: bytes) -> bytes:
    return b"\x12" + bytes([len(fields)]) + fields


@pytest.mark.parametrize(
    "data", [b"\xff" * 12, b"\x0a\x7f", b"\x0b", b"\x0a\x03\x0a\x01\xff", b"\x08\x01\x0a"]
)
def test_damaged_files_give_one_error(data):
    with pytest.raises(TextError, match=r"x is not a SentencePiece model: .*damaged"):
        parse_sentencepiece(data, "x")
    with pytest.raises(TextError, match="holds no pieces"):
        parse_sentencepiece(b"")


@settings(max_examples=150)
@given(cut=st.integers(0, 20000), at=st.integers(0, 20000), byte=st.integers(0, 255))
def test_mutated_files_never_crash(cut, at, byte):
    data = bytearray(train_sentencepiece()[: max(cut, 200)])
    data[at % len(data)] = byte
    with contextlib.suppress(TextError):
        parse_sentencepiece(bytes(data))


@pytest.mark.parametrize(
    "table", [b"\xff", b"xxxxxxxxx", b"\x08\0\0\0abcd", b"\x03\0\0\0abc", b"\0\0\0\0\xff"]
)
def test_a_damaged_normalisation_table_is_refused(tmp_path, table):
    """Of 2 GB, say, of which it has nine bytes: the library would take that much before it looks."""
    inside = b"\x12" + bytes([len(table)]) + table
    model = b"\x0a\x03\x0a\x01a\x1a" + bytes([len(inside)]) + inside
    (tmp_path / "tokenizer.model").write_bytes(model)
    with pytest.raises(TextError, match="normalisation table is damaged"):
        load_tokenizer(tmp_path)


def test_a_normalisation_table_in_a_tokenizer_json_is_as_long_as_it_says(tmp_path):
    table = train_sentencepiece(rule="nmt_nfkc")
    (tmp_path / "tokenizer.model").write_bytes(table)
    state = json.loads(load_tokenizer(tmp_path).backend.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    assert load_tokenizer(tmp_path).encode("ﬁ") == load_tokenizer(tmp_path).encode("fi")
    (step,) = (one for one in state["normalizer"]["normalizers"] if one["type"] == "Precompiled")
    step["precompiled_charsmap"] = "eHh4eHh4eHg="
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(TextError, match="normalisation table is damaged: it is shorter than it says"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("parse", [False, True])
def test_a_normalisation_table_that_leads_nowhere_is_one_error(tmp_path, parse):
    """It is looked into only where a text needs it, at whose ends blanks are trimmed first."""
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece() + b"\x1a\x06\x12\x04\0\0\0\0")
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(TextError, match=r"the tokenizer cannot encode this text: .*damaged"):
        tokenizer.encode("é", parse_special=parse)
